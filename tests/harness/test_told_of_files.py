"""What is told of saved adapters: of files that PEFT reads, damaged ones, rounded ones, and settings not in them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.cases.profiles import Profile
from harness.compare.outcome import Deviation, OutsideDomain
from harness.compare.own_reading import of_the_library, reads_itself, writes_whole_states
from harness.subjects import peft_release
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot
from oracles.peft import Peft
from reports.model import Audit, Claim, Finding
from reports.render.fixes import instruction
from tests.subjects import files, wrapped
from tests.subjects.broken import NormNotSaved
from tests.subjects.broken_alone import LoadsSquaresTurned
from tests.subjects.judged import audit

TWELVE = Profile("default", 12, 0)


def audited(subject: Implementation, *checks: str, variant: str = "lora") -> Audit:
    """What these checks find."""
    return audit(subject, [variant], checks=lambda c: c.id in checks, profile=TWELVE)


def findings(subject: Implementation, *checks: str, variant: str = "lora") -> tuple[Finding, ...]:
    """The findings of these checks."""
    return tuple(audited(subject, *checks, variant=variant).findings)


def claim_of(found: Audit, check: str) -> Claim:
    """The check's claim."""
    return next(c for c in found.run.claims if c.check == check)


# --- in PEFT's format

PEFTS = {
    "lora": {"A": "lora_A.weight", "B": "lora_B.weight"},
    "dora": {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"},
    "hra": {"U": "hra_u"},
}


class InPeftsFormat(wrapped.Library):
    """A folder as PEFT writes it."""

    place = "base_model.model.layer"

    def save(self, adapted: Adapted, path: Path) -> None:
        path.mkdir()
        spec = adapted.module.spec
        tensors = {f"{self.place}.{self.name_of(spec, n)}": t for n, t in self.sent(adapted).items()}
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(self.config(spec)), encoding="utf-8")

    def sent(self, adapted: Adapted) -> dict[str, Tensor]:
        """The tensors by their canonical names."""
        return files.state(adapted)

    def name_of(self, spec: AdapterSpec, name: str) -> str:
        """What PEFT calls a tensor."""
        return PEFTS[spec.variant][name]

    def config(self, spec: AdapterSpec) -> dict[str, Any]:
        """adapter_config.json."""
        told = {"r": spec.rank, "target_modules": [self.place.rpartition(".")[2]]}
        if spec.variant == "hra":
            return {**told, "peft_type": "HRA", "apply_GS": spec.gram_schmidt}
        dora = spec.variant == "dora"
        return {
            **told,
            "peft_type": "LORA",
            "lora_alpha": spec.alpha,
            "use_dora": dora,
            "use_rslora": spec.rslora,
        }

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        told = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        spec = dataclasses.replace(spec, rank=told["r"], alpha=told.get("lora_alpha", spec.alpha))
        held = load_file(path / "adapter_model.safetensors")
        ends = {self.name_of(spec, n): n for n in PEFTS[spec.variant]}
        found = {ends[e]: t for k, t in held.items() for e in ends if k.endswith(e)}
        adapted = self.adapt(base, spec)
        return self.fill(adapted, self.method(adapted), found)


class NamedOtherwise(InPeftsFormat):
    """The tensors have names that PEFT does not read."""

    def name_of(self, spec: AdapterSpec, name: str) -> str:
        return f"low_rank_{name}"


class HalfNamedOtherwise(InPeftsFormat):
    """B has a name that PEFT does not read."""

    def name_of(self, spec: AdapterSpec, name: str) -> str:
        return "up.weight" if name == "B" else super().name_of(spec, name)


class AnotherLayersName(InPeftsFormat):
    """The one layer of the model is called otherwise than in the audit's."""

    place = "base_model.model.block.0.proj"


class DoubledAlpha(InPeftsFormat):
    """The configuration has twice the alpha, which loading halves again."""

    def config(self, spec: AdapterSpec) -> dict[str, Any]:
        told = super().config(spec)
        return {**told, "lora_alpha": 2 * spec.alpha}


class SwapsRows(InPeftsFormat):
    """The rows of A are written the other way round."""

    def sent(self, adapted: Adapted) -> dict[str, Tensor]:
        return {n: t.flip(1) if n == "A" else t for n, t in super().sent(adapted).items()}


class NormOfTheBase(wrapped.Dora):
    """The norm is the base's, whatever the adapter adds."""

    def norm(self) -> Tensor:
        return self.w0.norm(dim=1)


class Reversed(wrapped.Hra):
    """The reflections in the other order."""

    def order(self) -> list[int]:
        return list(range(self.spec.rank))


INTERCHANGE = "save_load.interchange"


@pytest.mark.parametrize("subject", [InPeftsFormat, AnotherLayersName])
@pytest.mark.parametrize("variant", sorted(PEFTS))
def test_files_that_peft_reads_are_right(subject: type[InPeftsFormat], variant: str) -> None:
    """Whatever the model calls its layer."""
    found = audited(subject(), INTERCHANGE, variant=variant)
    assert not found.findings
    assert claim_of(found, INTERCHANGE).outcome == "pass"


@pytest.mark.parametrize(("variant", "layer"), [("dora", NormOfTheBase), ("hra", Reversed)])
def test_a_forward_pass_is_not_told_of_the_file(variant: str, layer: type[wrapped.Wrapped]) -> None:
    """The tensors go both ways as they are."""
    checks = (INTERCHANGE, "forward.random_parameters")
    (found,) = findings(InPeftsFormat({variant: layer}), *checks, variant=variant)
    assert found.aspect == "forward"


@pytest.mark.parametrize(
    ("subject", "title"),
    [
        (NamedOtherwise, "PEFT finds none of the file's tensors by their names: it answers as the base"),
        (HalfNamedOtherwise, "PEFT looks in the file for tensors that it does not find by their names"),
        (DoubledAlpha, "checkpoints are not interchangeable"),
        (SwapsRows, "checkpoints are not interchangeable"),
    ],
)
@pytest.mark.parametrize("layers", [{}, {"dora": NormOfTheBase}])
def test_a_file_that_is_another_adapter_is_told(
    subject: type[InPeftsFormat], title: str, layers: Mapping[str, type[wrapped.Wrapped]]
) -> None:
    """Beside a forward pass that is wrong, too."""
    variant = next(iter(layers), "lora")
    (found,) = findings(subject(layers), INTERCHANGE, variant=variant)
    assert (found.tag, found.severity) == ("BUG", "major")
    assert found.title.startswith(title)


def test_the_subject_is_what_peft_has_to_be() -> None:
    """Its output is expected, PEFT's is got: with twice the alpha that is twice the contribution."""
    found = audited(DoubledAlpha(), INTERCHANGE)
    seen = claim_of(found, INTERCHANGE).witness
    assert seen.note == "what arrives contributes 2 times what was sent"
    mend = f"in PEFT has to be {seen.expected} at the smallest case, and is {seen.actual}"
    assert instruction(found.findings[0], found.run.claims).endswith(mend)


class OneSlot(wrapped.Lora):
    """B is shown to nobody."""

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.A)}


class LosesB(InPeftsFormat):
    """B is trained, and zero in the file."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        nn.init.ones_(adapted.module.B)
        return adapted

    def sent(self, adapted: Adapted) -> dict[str, Tensor]:
        return {**super().sent(adapted), "B": torch.zeros_like(adapted.module.B).detach()}

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, method, {n: t for n, t in tensors.items() if n != "B"})


def test_what_is_not_shown_may_be_lost_in_the_file() -> None:
    """Two zeros are no proof that it was carried."""
    (found,) = findings(LosesB({"lora": OneSlot}), INTERCHANGE)
    assert found.aspect == "save_load"


class HalfForPeft(InPeftsFormat):
    """The file holds float16."""

    def sent(self, adapted: Adapted) -> dict[str, Tensor]:
        return {n: t.half() for n, t in super().sent(adapted).items()}


def test_digits_are_told_once() -> None:
    """They are missing in PEFT as they are at home."""
    (found,) = findings(HalfForPeft(), INTERCHANGE, "save_load.round_trip")
    assert found.title.startswith("the file holds in half precision")


# --- damaged

BAD_FILES = "save_load.bad_files"
DAMAGED, WARNED = "a damaged file is loaded as if it were whole", "a damaged file is loaded with a warning"


class FillsUp(wrapped.Library):
    """What is not in the file keeps its start."""

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        self.tell(sorted(set(adapted.slots) - set(tensors)))
        return super().fill(adapted, self.method(adapted), {**files.state(adapted), **tensors})

    def tell(self, missing: list[str]) -> None:
        """Nothing is said of it."""


class FillsUpAndWarns(FillsUp):
    """A warning says what is missing."""

    def tell(self, missing: list[str]) -> None:
        if missing:
            warnings.warn(f"missing in the file: {missing}", stacklevel=2)


class FillsUpAndWarnsAnyway(FillsUp):
    """A warning says nothing of the file, at every load."""

    def tell(self, missing: list[str]) -> None:
        warnings.warn("this format is going to be replaced", stacklevel=2)


@pytest.mark.parametrize(
    ("subject", "title"),
    [
        (FillsUp, DAMAGED),
        (FillsUpAndWarns, WARNED),
        (FillsUpAndWarnsAnyway, DAMAGED),
        (Peft, WARNED),
        (peft_release.Peft, WARNED),
    ],
)
def test_a_damaged_file_of_which_is_warned_is_not_loaded_as_whole(
    subject: type[Implementation], title: str
) -> None:
    """It counts what is said of the damaged file, and not of a whole one; PEFT warns, too."""
    (found,) = findings(subject(), BAD_FILES)
    assert found.title.startswith(title)
    assert "changed" not in found.title  # of a base that is as it was
    assert (found.tag, found.severity) == ("BUG", "major")
    assert bool(found.heard) == (subject is not FillsUp)
    assert any(reference.startswith("PEFT") for reference in found.also_fails) == (title == WARNED)


def test_what_to_do_about_a_warning_is_to_refuse() -> None:
    found = audited(FillsUpAndWarns(), BAD_FILES)
    assert instruction(found.findings[0], found.run.claims) == "refuse the file in a sentence"


class FlatArchive(files.Stored):
    """A state dict in torch's archive, the settings in the tensors' names alone."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        torch.save({f"layer.{n}": t for n, t in tensors.items()}, path)

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        found = torch.load(path, weights_only=True)
        return "", {k.removeprefix("layer."): t for k, t in found.items()}


class Flat(FlatArchive, wrapped.Library):
    """It is refused if it is not whole."""

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, self.method(adapted), tensors)


class FlatFilledUp(FlatArchive, FillsUp):
    """What is not in it keeps its start."""


class NestedFilledUp(files.InTorchFile, FillsUp):
    """The same of a dict of tensors within a dict."""


class BesideTheOptimisers(Flat):
    """The file holds larger tensors that are none of the adapter's, and that loading does not ask for."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        mine = {f"layer.{n}": t for n, t in tensors.items()}
        torch.save({"adapter": mine, "optimiser": {"moments": torch.ones(1000)}}, path)

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        found = torch.load(path, weights_only=True)["adapter"]
        return "", {k.removeprefix("layer."): t for k, t in found.items()}


class InAnObject(Flat):
    """The archive holds more than tensors and plain values, and cannot be read without running code."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        torch.save({**tensors, "folder": path.parent}, path)

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        found = torch.load(path, weights_only=False)
        return "", {k: t for k, t in found.items() if k != "folder"}


@pytest.mark.parametrize("subject", [FlatFilledUp, NestedFilledUp])
def test_an_archive_of_torchs_can_be_damaged_too(subject: type[Implementation]) -> None:
    (found,) = findings(subject(), BAD_FILES)
    assert found.title.startswith(DAMAGED)


@pytest.mark.parametrize(
    ("subject", "outcome"), [(Flat, "pass"), (BesideTheOptimisers, "pass"), (InAnObject, "not_applicable")]
)
def test_an_archive_that_is_refused_is_right(subject: type[Implementation], outcome: str) -> None:
    """What the adapter can do without is left alone; what is no plain archive is not asked about."""
    found = audited(subject(), BAD_FILES)
    assert not found.findings
    assert claim_of(found, BAD_FILES).outcome == outcome


# --- rounded


class InHalf(wrapped.Library):
    """The file holds float16."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        super().write({n: t.half() for n, t in tensors.items()}, method, path)


class LoadedInHalf(wrapped.Library):
    """The file holds float32, of which loading makes bfloat16."""

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        method, tensors = super().read(path)
        return method, {n: t.bfloat16() for n, t in tensors.items()}


class WithoutB(wrapped.Library):
    """B is not in the file."""

    def save(self, adapted: Adapted, path: Path) -> None:
        state = files.state(adapted)
        self.write({n: t for n, t in state.items() if n != "B"}, self.method(adapted), path)

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, method, {"B": adapted.slots["B"].tensor.detach(), **tensors})


class BNotRead(wrapped.Library):
    """B keeps its start."""

    names = frozenset("B")

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        kept = {n: adapted.slots[n].tensor.detach().clone() for n in self.names}
        return super().fill(adapted, method, {**tensors, **kept})


class ReadsNothing(BNotRead):
    """The whole adapter keeps its start."""

    names = frozenset("AB")


class BTimesTwo(wrapped.Library):
    """A factor that is applied when loading."""

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, method, {**tensors, "B": 2 * tensors["B"]})


ROUND_TRIP, STORED = "save_load.round_trip", "save_load.stored"
HALF = "the file holds in half precision what the adapter holds in full"


@pytest.mark.parametrize(
    ("subject", "title", "told"),
    [
        (InHalf, HALF, "rounded to float16"),
        (LoadedInHalf, "a saved adapter comes back rounded to half precision", "rounded to bfloat16"),
        (WithoutB, "the loaded adapter starts anew with B, which the saved file lacks", "up to"),
        (BNotRead, "the loaded adapter starts anew with B, which the saved file holds", "up to"),
        (ReadsNothing, "the loaded adapter starts anew with A and B, which the saved file holds", "up to"),
        (LoadsSquaresTurned, "loading gives A and B the values of another tensor of the adapter", "up to"),
        (BTimesTwo, "loading gives B times a constant", "up to"),
    ],
)
def test_a_rounding_is_told_as_one(subject: type[Implementation], title: str, told: str) -> None:
    """Of the file only where the file holds it."""
    (found,) = (run := audited(subject(), ROUND_TRIP)).findings
    assert found.title == title
    assert claim_of(run, ROUND_TRIP).witness.actual.startswith(told)


def test_what_is_made_anew_on_another_base_is_named() -> None:
    (found,) = audited(
        NormNotSaved({"delora": wrapped.Delora}), "save_load.other_base", variant="delora"
    ).findings
    assert found.title == "the loaded adapter starts anew with w_norm, which the saved file lacks"


class ReadsTensorsAlone(wrapped.Library):
    """Torch's archive, of which nothing but tensors is read."""

    weights_only = True

    def save(self, adapted: Adapted, path: Path) -> None:
        torch.save(files.state(adapted), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = self.adapt(base, spec)
        read = torch.load(path, weights_only=self.weights_only)
        return self.fill(adapted, self.method(adapted), read)


class ReadsAnything(ReadsTensorsAlone):
    """With pickle."""

    weights_only = False


def test_a_pickle_that_is_read_as_tensors_runs_nothing() -> None:
    """The remedy is not what the library does already."""
    (safe,) = (run := audited(ReadsTensorsAlone(), "save_load.format")).findings
    assert "weights_only" not in instruction(safe, run.run.claims)
    (unsafe,) = (run := audited(ReadsAnything(), "save_load.format")).findings
    assert "weights_only" in instruction(unsafe, run.run.claims)


@pytest.mark.parametrize(("subject", "told"), [(InHalf, "rounded to float16"), (WithoutB, "missing")])
def test_what_is_in_the_file_is_not_missing(subject: type[Implementation], told: str) -> None:
    assert claim_of(audited(subject(), STORED), STORED).witness.actual == told
    assert not findings(wrapped.Library(), STORED, ROUND_TRIP)


# --- settings that are not in the file

OTHER = "save_load.other_settings"


class WithoutAlpha(wrapped.Library):
    """Alpha is whatever the caller says."""

    def method(self, adapted: Adapted) -> str:
        return "+".join(sorted(adapted.slots))


class InHalfWithoutAlpha(InHalf, WithoutAlpha):
    """Rounded besides."""


class AlphaOutOfTheFile(InHalf):
    """Rounded, and alpha comes out of the file, whatever the caller says."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        told = json.loads(self.read(path)[0].partition(" ")[2])
        return super().load(base, dataclasses.replace(spec, alpha=told["alpha"], rank=told["rank"]), path)


def test_a_second_cause_is_told_beside_a_rounding() -> None:
    """What alpha does is no matter of digits."""
    found = {f.title: f.claims for f in findings(InHalfWithoutAlpha(), ROUND_TRIP, OTHER)}
    assert sorted(found) == [
        "alpha is not in the file: another alpha at load gives another model and is not refused", HALF,
    ]  # fmt: skip
    assert [f.title for f in findings(WithoutAlpha(), ROUND_TRIP, OTHER)] == sorted(found)[:1]


def test_a_rounding_is_no_second_cause() -> None:
    """Where another alpha at load changes nothing there is one finding."""
    assert [f.title for f in findings(AlphaOutOfTheFile(), ROUND_TRIP, OTHER)] == [HALF]


# --- read by the subject file itself

THIN = """
from pathlib import Path
import torch
from oracles.implementation import Implementation


class Thin(Implementation):
    name, version, variants = "thin", "1", frozenset({{"lora"}})

    def adapt(self, base, spec):
        raise NotImplementedError

    def load(self, base, spec, path):
        return read(self, path)

    def save(self, adapted, path):
        {save}

    def source(self, variant, aspect):
        return {place}, "forward"


class Inheriting(Thin):
    pass


def read(self, path):
    return {load}
"""


def thin(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    elsewhere: bool,
    load: str = "path",
    save: str = "pass",
) -> ModuleType:
    """A subject file of that ``load`` and ``save``, whose library lies elsewhere or is the file itself."""
    file = tmp_path / "thin.py"
    place = f'Path("{tmp_path}/library/core.py")' if elsewhere else "Path(__file__)"
    file.write_text(THIN.format(load=load, save=save, place=place))
    spec = importlib.util.spec_from_file_location("thin", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "thin", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("load", "elsewhere", "call"),
    [
        ("torch.load(path)", True, "torch.load"),
        ("self.library.load_state_dict(path, strict=False)", True, "load_state_dict"),
        ("self.library.load_adapter(path)", True, ""),
        ("torch.load(path)", False, ""),
    ],
)
def test_how_a_subject_file_reads_is_not_the_librarys(
    load: str, elsewhere: bool, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the library lies elsewhere; a library that is its own subject reads its files itself."""
    module = thin(tmp_path, monkeypatch, elsewhere=elsewhere, load=load)
    for subject in (module.Thin(), module.Inheriting()):
        found = reads_itself(subject)
        assert found.endswith(call)
        assert bool(found) == bool(call)


@pytest.mark.parametrize(
    ("save", "elsewhere", "whole"),
    [
        ("torch.save(adapted.module.state_dict(), path)", True, True),
        ("torch.save({k: v for k, v in adapted.module.state_dict().items()}, path)", True, True),
        ("torch.save(library.lora_state_dict(adapted.module), path)", True, False),
        ("torch.save(library.without_base(adapted.module.state_dict()), path)", True, False),
        ("torch.save(adapted.module.state_dict(), path)", False, False),
    ],
)
def test_a_whole_state_dict_is_the_subject_files_choice(
    save: str, elsewhere: bool, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the library says what is saved, nor where it is its own subject."""
    module = thin(tmp_path, monkeypatch, elsewhere=elsewhere, save=save)
    assert writes_whole_states(module.Inheriting()) == whole
    found = Deviation(None, "the base weight in the saved files", "not stored", "stored")
    with pytest.raises(OutsideDomain if whole else Deviation), of_the_library(module.Thin()):
        raise found

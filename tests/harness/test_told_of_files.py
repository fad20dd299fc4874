"""What is told of saved adapters: of files that PEFT reads, damaged ones, rounded ones, and settings not in them."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.cases.profiles import Profile
from oracles.implementation import Adapted, AdapterSpec, Implementation
from reports.model import Audit, Claim, Finding
from reports.render.fixes import instruction
from tests.subjects import files, wrapped
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
        return {**told, "peft_type": "LORA", "lora_alpha": spec.alpha, "use_dora": dora, "use_rslora": spec.rslora}

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

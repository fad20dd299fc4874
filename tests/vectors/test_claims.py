"""The claims on checkpoints: a right reader passes them all, one that offers nothing is said to offer nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

from harness.cases.profiles import Profile
from harness.checkpoints.adapter_folder import AdapterFolder
from harness.compare.awkward_checkpoints import FOLDERS
from harness.engine.checks import Check
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from oracles.vectors.awkward import TOPICS
from oracles.vectors.meaning import AdaptedModule
from reports.model import Claim, Finding
from tests.subjects import functional
from tests.subjects.checkpoint_loaders import MergingLoader, Updates, misread
from tests.subjects.judged import audit, once

TWELVE = Profile("default", 12, 0)


def _asked(subject: Implementation, variant: str, *checks: str) -> list[Claim]:
    def chosen(check: Check) -> bool:
        return check.info.aspect == "checkpoints" and (not checks or check.id in checks)

    return once(subject, [variant], chosen, TWELVE)


@pytest.mark.parametrize("variant", ["lora", "delora"])
def test_a_right_reader_passes(variant: str) -> None:
    claims = _asked(MergingLoader(variant), variant)
    assert claims
    assert {c.outcome for c in claims} == {"pass"}, [c.reason for c in claims if c.outcome != "pass"]


def test_what_is_not_offered_is_no_pass() -> None:
    claims = _asked(functional.Library({"lora": functional.METHODS["lora"]}), "lora")
    assert {c.outcome for c in claims} == {"not_applicable"}
    assert all("does not read PEFT's format" in (c.reason or "") for c in claims)


def test_the_counterexample_names_tensor_and_reading() -> None:
    subject = MergingLoader("lora", misread("scale.over_root_rank"))
    (claim,) = _asked(subject, "lora", "checkpoints.scale")
    assert claim.outcome == "fail"
    assert claim.witness is not None
    assert claim.witness.case["vector"] == "lora.alpha_above_rank"
    assert claim.witness.quantity == "weights of layers.0.q_proj.weight"
    assert claim.diagnosis is not None
    assert claim.diagnosis.summary == "the update is α/√r where the file says α/r"


class HasNoConvolutions(MergingLoader):
    """Says so, in so many words, where a file is for one."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        if any(isinstance(module, nn.Conv2d) for module in model.modules()):
            raise ValueError("convolutions are not taken")
        return super().load_peft(model, folder)


def test_a_vector_that_is_refused_in_so_many_words_is_left_out() -> None:
    (claim,) = _asked(HasNoConvolutions("dora"), "dora", "checkpoints.layouts")
    assert claim.outcome == "pass"


def two_misread(module: AdaptedModule) -> Updates:
    """alpha_pattern is ignored, and what the file holds whole is left out."""
    return {
        **misread("pattern.alpha")(module),
        **(misread("saved.left_out")(module) if module.replaced else {}),
    }


def no_embeddings(module: AdaptedModule) -> Updates:
    """The tensors of embeddings are not looked at."""
    return {} if "embed" in module.module else module.updates()


def _found(subject: Implementation, *checks: str) -> dict[str | None, Finding]:
    told = audit(subject, ["lora"], checks=lambda c: c.id in checks, profile=TWELVE)
    return {finding.mistake: finding for finding in told.findings}


def test_two_misreadings_are_two_findings() -> None:
    """What the tensors equal is not why others equal something else."""
    found = _found(
        MergingLoader("lora", two_misread),
        "checkpoints.scale",
        "checkpoints.whole_tensors",
        "checkpoints.merged",
    )
    assert set(found) == {"checkpoints.pattern.alpha", "checkpoints.saved.left_out"}


def test_what_stays_as_in_the_base_is_not_misread() -> None:
    found = _found(MergingLoader("lora", no_embeddings), "checkpoints.layouts")
    assert set(found) == {"checkpoints.not_applied"}
    assert "as the base does" in found["checkpoints.not_applied"].failure_mode


class FailsAtTheRoot(MergingLoader):
    """A list of blocks at the model's root ends in an exception, as does a name that it takes apart wrongly."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        if any(name.startswith("layers.") or ".lora_A" in name for name, _ in model.named_modules()):
            raise ValueError("LoRA A shape mismatch")
        return super().load_peft(model, folder)


@pytest.mark.parametrize("topic", ["root_list", "own_words"])
def test_what_ends_in_an_exception_runs_as_nothing(topic: str) -> None:
    found = _found(FailsAtTheRoot("lora"), f"checkpoints.{topic}")
    assert set(found) == {f"checkpoints.{topic}.refused"}
    for finding in found.values():
        assert "runs as" not in finding.failure_mode
        assert "exception" in finding.title


class MakesRanksByItsOwnRule(MergingLoader):
    """A module's factors are made with a rank of their own, and tensors of another one do not go into them."""

    def fits(self, key: str, module: str) -> bool:
        """A key of rank_pattern stands anywhere in a name."""
        return key in module

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        adapter = AdapterFolder(folder)
        ranks = adapter.config.data.get("rank_pattern") or {}
        for part in adapter.parts:
            made = next(
                (r for key, r in ranks.items() if self.fits(key, part.module)), adapter.config.default_rank
            )
            held = adapter.tensors.shape(part.keys["A"])[0]
            if made != held and not set("^.|") & set("".join(ranks)):
                raise RuntimeError(f"The size of tensor a ({made}) must match the size of tensor b ({held})")
        return super().load_peft(model, folder)


class TakesWholeNamesAlone(MakesRanksByItsOwnRule):
    """A key that is a word is for a module at the model's root."""

    def fits(self, key: str, module: str) -> bool:
        return key == module


class TakesEndings(MakesRanksByItsOwnRule):
    """A key is for a name that it ends at a dot."""

    def fits(self, key: str, module: str) -> bool:
        return f".{module}".endswith(f".{key}")


def test_a_key_that_fits_more_is_told_of_names() -> None:
    """Without the modules whose names the word is only part of, the file is read."""
    (found,) = _found(MakesRanksByItsOwnRule("lora"), "checkpoints.pattern_keys").values()
    assert found.mistake == "checkpoints.pattern_keys.matches_more"
    assert "names it is only part of" in found.title
    assert "expression" not in found.title


def test_a_key_that_fits_less_is_told_of_no_expression() -> None:
    """The exception is another one's: it comes without those modules, too."""
    (found,) = _found(TakesWholeNamesAlone("lora"), "checkpoints.pattern_keys").values()
    assert found.mistake == "checkpoints.pattern_keys.refused"
    assert "a key of rank_pattern or alpha_pattern that is part of other modules' names" in found.title
    assert "expression" not in found.title


def test_a_key_that_fits_an_ending_is_right() -> None:
    assert not _found(TakesEndings("lora"), "checkpoints.pattern_keys")


class RefusesExpressions(MergingLoader):
    """A key that is more than a word ends in an exception."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        keys = "".join(AdapterFolder(folder).config.data.get("rank_pattern") or {})
        if set("^|\\") & set(keys):
            raise RuntimeError("no module of that name")
        return super().load_peft(model, folder)


def test_expressions_are_told_where_they_are_the_keys() -> None:
    (found,) = _found(RefusesExpressions("lora"), "checkpoints.pattern_keys").values()
    assert "with expressions as keys" in found.title


def test_every_topic_says_what_its_folders_are_for() -> None:
    assert set(FOLDERS) == set(TOPICS)


class LoadsAlone(MergingLoader):
    """It reads checkpoints, and makes no adapters of its own."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        raise Unsupported("no fresh adapters")


def test_what_makes_no_fresh_adapters_is_asked_about_checkpoints() -> None:
    """The files are read and written all the same; the rest is not offered."""
    assert {c.outcome for c in _asked(LoadsAlone("delora"), "delora")} == {"pass"}
    (wrong,) = _asked(LoadsAlone("lora", misread("pattern.alpha")), "lora", "checkpoints.scale")
    assert wrong.outcome == "fail"
    other = once(LoadsAlone("delora"), ["delora"], lambda c: c.id == "forward.gradients", TWELVE)
    assert [c.cause for c in other] == ["no_variant"]

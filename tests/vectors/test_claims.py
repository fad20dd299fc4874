"""The claims on checkpoints: a right reader passes them all, one that offers nothing is said to offer nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import nn

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from oracles.implementation import Adapted, Implementation
from reports.model import Claim
from tests.subjects import functional
from tests.subjects.checkpoint_loaders import MergingLoader, misread
from tests.subjects.judged import once

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

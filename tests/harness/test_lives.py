"""The claims on the life of an adapter: each wrong library is found out by the one that is meant for it."""

from __future__ import annotations

import pytest

from harness.compare.life_faults import CATALOGUE
from harness.engine.checks import load_checks
from oracles.variants import VARIANTS
from reports.model import ALONE
from tests.life_table import asked
from tests.subjects.broken_lives import BROKEN_LIVES, BrokenLife, DroppingLibrary, ShiftingLibrary
from tests.subjects.judged import QUICK, audit
from tests.subjects.lives import Library
from tests.subjects.wrapped import Library as OneAdapter


@pytest.mark.parametrize("broken", BROKEN_LIVES, ids=lambda b: f"{b.variant}-{b.name}")
def test_found_out(broken: BrokenLife) -> None:
    """The claim fails, says what is wrong, and shows a sequence of a few steps."""
    claim = asked(broken)
    assert claim.outcome in ("fail", "error"), claim
    said = claim.diagnosis.mistake.removeprefix("lifecycle.") if claim.diagnosis else ""
    assert said == broken.says
    if claim.outcome == "fail":
        assert claim.witness is not None
        assert len(str(claim.witness.case.get("steps")).split(" · ")) <= broken.steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_right_library_is_not_accused(variant: str) -> None:
    """With all the methods, everything holds."""
    found = audit(Library(), [variant], checks=lambda check: check.info.aspect == "lifecycle", profile=QUICK)
    assert {c.id: c.reason for c in found.run.claims if c.outcome != "pass"} == {}


def test_settings_of_their_own_are_no_fault() -> None:
    """A library with a rate of dropout for each adapter passes."""
    found = audit(DroppingLibrary(), ["lora"], checks=lambda c: c.id == "lifecycle.dropout", profile=QUICK)
    assert [c.outcome for c in found.run.claims] == ["pass"]


def test_a_further_tensor_that_learns_is_no_fault() -> None:
    """What the model does not know of is not trained in a life: the output would be another."""
    checks = ("lifecycle.output", "lifecycle.merged", "lifecycle.gradients", "lifecycle.copies")
    found = audit(ShiftingLibrary(), ["lora"], checks=lambda c: c.id in checks, profile=QUICK)
    assert {c.id: c.reason for c in found.run.claims if c.outcome != "pass"} == {}


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_what_is_not_offered_is_no_failure(variant: str) -> None:
    """With one adapter and no switching, what needs more is not offered, and the verdict is none the worse."""
    found = audit(
        OneAdapter(), [variant], checks=lambda check: check.info.aspect == "lifecycle", profile=QUICK
    )
    outcomes = {c.check.removeprefix("lifecycle."): c for c in found.run.claims}
    assert {c.outcome for c in outcomes.values()} <= {"pass", "not_applicable"}
    assert outcomes["output"].cause == "not_offered"
    assert outcomes["detach"].outcome == outcomes["merged"].outcome == "pass"
    assert found.verdicts[variant].verdict == "Faithful"


def test_every_claim_and_every_fault_is_shown() -> None:
    """Each claim has a wrong library that it finds out, and each fault of the model one that has it."""
    claims = {id_ for id_, check in load_checks().items() if check.info.aspect == "lifecycle"}
    assert {b.claim for b in BROKEN_LIVES} == claims
    assert {d.mistake.removeprefix("lifecycle.") for d in CATALOGUE} == {b.says for b in BROKEN_LIVES} - {""}


def test_a_choice_that_is_stated_is_no_bug() -> None:
    """That inactive adapters stay trainable is a bug where nobody says so."""
    wrong = next(b for b in BROKEN_LIVES if b.name == "EveryAdapterTrainable")
    stating = type("Stating", (wrong.make,), {"__doc__": "Adapters that are not active stay trainable."})  # type: ignore[misc, arg-type]
    tags = [
        [f.tag for f in audit(make(), ["lora"], checks=lambda c: c.id == wrong.claim, profile=QUICK).findings]
        for make in (wrong.make, stating)
    ]
    assert tags == [["BUG"], ["OK-doc"]]


def test_an_unmerge_that_rounds_is_not_due_to_a_graver_fault() -> None:
    """What stays folded in would be off by more than the digits."""
    wrong = next(b for b in BROKEN_LIVES if b.name == "UnmergedBySubtraction")
    assert asked(wrong).detail == ALONE

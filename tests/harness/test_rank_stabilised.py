"""Rank-stabilised LoRA is asked of who has it: a right library passes, and one without lacks nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.compare.rank_stabilised import IGNORED
from harness.engine.checks import Check
from oracles.implementation import Implementation
from tests.subjects import wrapped
from tests.subjects.broken_rank_stabilised import RankStabilised, TakesItWithoutEffect
from tests.subjects.judged import QUICK, audit


def asked(check: Check) -> bool:
    """The questions about it, and one that any library answers."""
    return check.id.endswith(".rank_stabilised") or check.id == "scale.effective"


@pytest.mark.parametrize(
    ("who", "causes"),
    [(RankStabilised(), {None: 4}), (wrapped.Library(), {"not_offered": 3, None: 1})],
    ids=["with", "without"],
)
def test_nobody_is_accused(who: Implementation, causes: dict[str | None, int]) -> None:
    """A subject's file that does not know it passes nothing on: the output is the same, and that is no fault."""
    found = audit(who, ["lora"], checks=asked, profile=QUICK)
    assert Counter(c.cause for c in found.run.claims) == causes
    assert found.verdicts["lora"].verdict == "Faithful"


def test_what_is_taken_without_an_effect_is_named() -> None:
    found = audit(TakesItWithoutEffect(), ["lora"], checks=asked, profile=QUICK)
    told = {c.check: c.diagnosis for c in found.run.claims if c.outcome == "fail"}
    assert told["scale.rank_stabilised"] == IGNORED
    assert [f.title for f in found.findings if f.tag == "BUG"] == [IGNORED.summary]

"""The hostile subjects of the tests in process, in a process of their own: each ends as in process, or better."""

from __future__ import annotations

import pytest
import torch

from harness.compare import isolation
from harness.engine.session import load_references
from oracles.implementation import Implementation
from tests.remote.served import served
from tests.subjects.hostile import HOSTILE, Hostile
from tests.subjects.judged import QUICK, once

# Reads the oracle's mode, too, in process: there both sides are rounded alike, and only the mode is told.
# And the switch is a library that is its own subject file: what it returns is the library's.
BETTER = {
    "LeavesAutocastOn": ("fail", "output"),
    "LoadsNone": ("error", "returned NoneType"),
    "MergesToNone": ("error", "returned NoneType"),
}
SLOW = {"TurnsDeterminismOn"}  # imports a compiler, in either process


@pytest.fixture(scope="module")
def switch() -> Implementation:
    """One process for all of them."""
    load_references()
    torch.set_num_threads(1)
    return served("switch.py", "Switch")


@pytest.mark.parametrize(
    "case", [h for h in HOSTILE if "Hang" not in h.name and h.name not in SLOW], ids=lambda h: h.name
)
def test_ends_as_in_process(case: Hostile, switch: Implementation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outcome and the same words."""
    monkeypatch.setattr(isolation, "CLAIM_SECONDS", 30.0)
    switch.source("use", case.name)
    (claim,) = once(switch, ["lora"], lambda c: c.id == case.check, QUICK)
    # The subject file here is the switch: what a subject behind it raises is the library's.
    as_library = (
        "error" if case.outcome == "unverified" and "raised" in (claim.reason or "") else case.outcome
    )
    outcome, words = BETTER.get(case.name, (as_library, case.words))
    assert claim.outcome == outcome, claim.reason
    assert words in (claim.reason or "")

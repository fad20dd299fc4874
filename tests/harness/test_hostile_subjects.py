"""Hostile subjects: each ends in a claim with a clear sentence, and what is asked next is not affected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.compare import isolation
from harness.engine.session import load_references
from oracles.implementation import Implementation
from reports.model import Claim
from tests.subjects import hostile, wrapped
from tests.subjects.hostile import HOSTILE, Hostile
from tests.subjects.judged import QUICK, audit, once

CONTROL = "forward.random_parameters"


@pytest.fixture(autouse=True)
def _few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    load_references()  # whose import sets variables of the environment
    # A hang is told by a short limit; everything else gets time enough for a loaded machine.
    monkeypatch.setattr(isolation, "CLAIM_SECONDS", 20.0)


def asked(subject: Implementation, check: str) -> list[Claim]:
    """The claims of one check, of the equations or else of PEFT."""

    return once(subject, ["lora"], lambda c: c.id == check, QUICK)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda h: h.name)
def test_ends_in_a_sentence(case: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's outcome and words; then a right subject is asked the same and passes."""
    if "Hang" in case.name:
        monkeypatch.setattr(isolation, "CLAIM_SECONDS", 0.5)
    before = facts()
    (claim,) = asked(case.make(), case.check)
    assert claim.outcome == case.outcome, claim.reason
    assert case.words in (claim.reason or ""), claim.reason
    assert len(claim.reason or "") < 2000
    assert facts() == before
    monkeypatch.setattr(isolation, "CLAIM_SECONDS", 20.0)
    (control,) = asked(wrapped.Library(), CONTROL)
    assert control.outcome == "pass", f"after {case.name}: {control.reason}"


def facts() -> dict[str, object]:
    """What a subject may not leave changed."""
    return {
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "autocast": torch.is_autocast_enabled("cpu"),
        "generator": torch.get_rng_state().sum().item(),
    }


def test_never_faithful_for_saying_no() -> None:
    """A subject to which nothing applies is not Faithful."""
    found = audit(
        hostile.AlwaysUnsupported(), ["lora"], checks=lambda c: c.info.aspect in ("shapes", "forward")
    )
    assert found.verdicts["lora"].verdict == "Partial"
    assert found.verdicts["lora"].verified == 0


def test_the_page_lists_every_hostile_subject() -> None:
    """docs/trust.md shows what each one got: `python -m tests.trust.hostile_table`."""
    page = (Path(__file__).parents[2] / "docs/trust.md").read_text(encoding="utf-8")
    listed = [
        tuple(cell.strip() for cell in line.strip("|").split("|")[:3])
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    missing = [h.name for h in HOSTILE if (h.name, h.check, h.outcome) not in listed]
    assert not missing


@pytest.mark.parametrize(
    ("passed", "used", "counted"),
    [(1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (1.0, 0.5, 0.5), (300.0, 0.1, 0.1)],
    ids=["waits", "computes", "crowded out", "suspended"],
)
def test_what_counts_against_the_limit(
    monkeypatch: pytest.MonkeyPatch, passed: float, used: float, counted: float
) -> None:
    """A second of waiting or of computing does; being crowded out, or suspended with the machine, does not."""
    watch = isolation.Stopwatch(wall=5.0, processor=7.0)
    monkeypatch.setattr(isolation.time, "monotonic", lambda: 5.0 + passed)
    monkeypatch.setattr(isolation.time, "process_time", lambda: 7.0 + used)
    assert watch.look() == pytest.approx(counted)

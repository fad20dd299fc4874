"""A mistake in the audit's own explanation takes nothing back of a difference that was found."""

from __future__ import annotations

import pytest

from harness.engine import diagnosis
from tests.subjects.broken import BROKEN, FORWARD
from tests.subjects.judged import audit


def test_a_difference_outlives_its_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyError("feedforward")

    monkeypatch.setattr(diagnosis, "diagnose", crash)
    monkeypatch.setattr(diagnosis, "explanation_at", crash)
    (broken,) = (b for b in BROKEN if b.name == "SqrtRank")
    claims = audit(broken.make(), ["lora"], checks=lambda check: check.id == FORWARD).run.claims
    (claim,) = (c for c in claims if c.check == FORWARD)
    assert claim.outcome == "fail"
    assert claim.diagnosis is None
    assert claim.witness
    assert "the audit's own explanation failed here (KeyError: 'feedforward')" in claim.witness.note

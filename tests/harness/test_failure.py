"""What is told of a difference: nothing takes it back, who agrees is said, and what has its own cause stands alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.engine import diagnosis
from harness.engine.checks import Check
from oracles.implementation import Slot
from tests.subjects import wrapped
from tests.subjects.broken import BROKEN, FORWARD
from tests.subjects.broken_alone import FactorsInHalf
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


def test_a_reference_that_breaks_the_rule_too_agrees() -> None:
    (broken,) = (b for b in BROKEN if b.name == "AlwaysInTraining")
    found = audit(broken.make(), ["lora"], checks=lambda check: check.id == "init.evaluation_mode")
    (finding,) = (f for f in found.findings if f.title.startswith("a fresh adapter is in training mode"))
    assert finding.agree == ("peft",)
    assert not finding.differ


def test_small_steps_are_told_beside_a_wrong_function() -> None:
    class Both(FactorsInHalf):
        def branch(self, x: Tensor) -> Tensor:
            return 2 * super().branch(x)

    def asked(check: Check) -> bool:
        return check.id == FORWARD or check.info.aspect == "dtype"

    found = audit(wrapped.Library({"lora": Both}), ["lora"], checks=asked).findings
    (own,) = (f for f in found if "small steps are lost" in f.title)
    assert own.claims == ("dtype.small_steps[lora-paper]",)


class StoredAsDifference(wrapped.Ia3):
    """The gate is 1 + w, and w is what trains."""

    def build(self) -> None:
        super().build()
        self.w = nn.Parameter(torch.zeros_like(self.l))
        del self.l

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["l"] = 1 + self.w
        return super().forward(x)

    def slots(self) -> dict[str, Slot]:
        return {"l": Slot(self.w, read=lambda w: 1 + w, write=lambda v: v - 1, gradient=lambda g: g)}


def test_a_tensor_that_is_stored_as_a_function_of_it_decays_elsewhere_and_is_no_bug() -> None:
    wanted = ("training.adamw", "training.sgd", "forward.random_parameters", "forward.gradients")
    subject = wrapped.Library({"ia3": StoredAsDifference})
    (finding,) = audit(subject, ["ia3"], checks=lambda c: c.id in wanted).findings
    assert finding.mistake == "training.decays_elsewhere"
    assert (finding.tag, finding.severity) == ("OK-undoc", "minor")


class AsDifference(wrapped.Pissa):
    """W stays, and the start's product is taken off: the residual is kept nowhere."""

    def build(self) -> None:
        super().build()
        del self.residual
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        z, y = x.to(self.dtype), self.base(x)
        change = self.drop(z) @ self.A.T @ self.B.T - z @ self.A0.T @ self.B0.T
        return (y + self.s * change).to(y.dtype)

    def weight(self) -> Tensor:
        return self.w0 + self.s * (self.B @ self.A - self.B0 @ self.A0)

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.A), "B": Slot(self.B)}


def test_pissa_without_a_residual_is_not_accused() -> None:
    wanted = ("dropout.placement", "forward.random_parameters", "forward.at_init", "merge.weight")
    subject = wrapped.Library({"pissa": AsDifference})
    found = audit(subject, ["pissa"], checks=lambda c: c.id in wanted, oracles=["peft", "paper", "author"])
    assert [f.title for f in found.findings if f.tag == "BUG" or "cannot be verified" in f.title] == []

"""A merge that is wrong by itself is a finding of its own beside a wrong forward pass; a right one is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oracles.implementation import Adapted
from tests.life_table import TWELVE
from tests.subjects import wrapped
from tests.subjects.judged import audit

ASKED = ("forward.random_parameters", "merge.weight", "merge.at_init", "merge.in_training", "merge.half")


class RootScale(wrapped.Lora):
    """The forward pass has α/√r, and what is merged has α/r."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * self.spec.rank**0.5


class FromNothing(wrapped.Library):
    """What is merged is the update alone, on weights of zero."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged = super().merge(adapted)
        with torch.no_grad():
            merged.weight -= adapted.module.base.weight
        return merged


def titles(subject: wrapped.Library) -> list[str]:
    found = audit(subject, ["lora"], checks=lambda c: c.id in ASKED, profile=TWELVE)
    return sorted(f.title for f in found.findings)


def test_two_faults_are_two_findings() -> None:
    told = titles(FromNothing({"lora": RootScale}))
    assert len(told) == 2
    assert "the merged layer is not the adapted one" in told


def test_one_fault_is_one_finding() -> None:
    """Where the forward pass alone is wrong, what is merged is what the equation says."""
    (told,) = titles(wrapped.Library({"lora": RootScale}))
    assert "√r" in told

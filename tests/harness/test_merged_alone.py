"""A merge that is wrong by itself is a finding of its own beside a wrong forward pass; a right one is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

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


class Unnormalised(wrapped.Dora):
    """V keeps its length, and the bias is multiplied by what the base's rows are; what is merged has it as it was."""

    def gain(self) -> Tensor:
        return self.m / self.w0.norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        y = fn.linear(x.to(self.dtype), self.v())
        y = self.gain() * (y if self.base.bias is None else y + self.base.bias)
        return y.to(x.dtype)

    def weight(self) -> Tensor:
        return self.gain()[:, None] * self.v()


class UnnormalisedThroughout(Unnormalised):
    """The same, and merged as it is computed."""

    def bias(self) -> Tensor | None:
        return None if self.base.bias is None else self.gain() * self.base.bias


class GainOnTheBias(wrapped.Dora):
    """The forward pass multiplies the bias as well, and what is merged has it as the equation has."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.base.bias is None else y + (self.m / self.norm() - 1).to(y.dtype) * self.base.bias


def titles(subject: wrapped.Library, variant: str = "lora") -> list[str]:
    found = audit(subject, [variant], checks=lambda c: c.id in ASKED, profile=TWELVE)
    return sorted(f.title for f in found.findings)


def test_two_faults_are_two_findings() -> None:
    told = titles(FromNothing({"lora": RootScale}))
    assert len(told) == 2
    assert "the merged layer is not the adapted one" in told


def test_one_fault_is_one_finding() -> None:
    """Where the forward pass alone is wrong, what is merged is what the equation says."""
    (told,) = titles(wrapped.Library({"lora": RootScale}))
    assert "√r" in told


def test_a_bias_that_is_merged_as_nobody_computes_it_is_a_finding_of_its_own() -> None:
    """Neither the layer's own nor the equation's is what is merged."""
    told = titles(wrapped.Library({"dora": Unnormalised}), "dora")
    assert len(told) == 2
    assert "the merged layer's bias is the base's, where the adapter changes it" in told


@pytest.mark.parametrize("layer", [UnnormalisedThroughout, GainOnTheBias])
def test_what_is_merged_as_one_of_them_has_it_is_none(layer: type[wrapped.Dora]) -> None:
    """As the layer computes it, or as the equation says."""
    assert len(titles(wrapped.Library({"dora": layer}), "dora")) == 1


class ChainTurnedRound(wrapped.Hra):
    """What is merged has the reflections the other way round."""

    merging = False

    def order(self) -> list[int]:
        """As they come, while merging."""
        return list(range(self.spec.rank)) if self.merging else super().order()

    def weight(self) -> Tensor:
        self.merging = True
        try:
            return super().weight()
        finally:
            self.merging = False


class MergedByTheRoot(wrapped.Lora):
    """What is merged has α/√r, the forward pass α/r."""

    def weight(self) -> Tensor:
        return self.w0 + self.spec.rank**0.5 * (super().weight() - self.w0)


@pytest.mark.parametrize(
    ("variant", "layer", "name"),
    [("hra", ChainTurnedRound, "merge.hra.reversed"), ("lora", MergedByTheRoot, "merge.lora.sqrt_rank")],
)
def test_a_known_mistake_of_merging_alone_has_its_name(
    variant: str, layer: type[wrapped.Wrapped], name: str
) -> None:
    """The forward pass is right, and what is merged is what a wrong one would compute."""
    subject = wrapped.Library({variant: layer})
    found = audit(subject, [variant], checks=lambda c: c.id in ASKED, profile=TWELVE)
    assert [f.mistake for f in found.findings if f.tag == "BUG"] == [name]


class Undivided(wrapped.Library):
    """What is merged is not divided by the rank: at rank two it is merged twice."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged, layer = super().merge(adapted), adapted.module
        with torch.no_grad():
            merged.weight += (layer.spec.rank - 1) * (merged.weight - layer.base.weight)
        return merged


def test_a_factor_that_is_two_at_one_rank_alone_is_not_told_as_twice() -> None:
    (title,) = titles(Undivided({"delora": wrapped.Delora}), "delora")
    assert title.startswith("in what is merged, and not in what is computed, λ in place of λ/r")
    (title,) = titles(Undivided({"hra": wrapped.Hra}), "hra")
    assert title == "the adapter is merged with another factor than it acts with"

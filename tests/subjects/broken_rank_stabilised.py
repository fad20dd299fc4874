"""Wrong subjects that know rslora, α/√r in place of α/r; and a right one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from torch import nn

from oracles.implementation import Adapted, AdapterSpec
from tests.subjects import wrapped
from tests.subjects.broken import library


class Stabilised(wrapped.Lora):
    """LoRA with either factor."""

    @property
    def s(self) -> float:
        return self.spec.alpha / (math.sqrt(self.spec.rank) if self.spec.rslora else self.spec.rank)


class RankStabilised(wrapped.Library):
    """A right library, of LoRA alone."""

    name = "rank_stabilised"
    variants = frozenset({"lora"})
    layer: type[wrapped.Wrapped] = Stabilised

    def __init__(self) -> None:
        super().__init__({"lora": self.layer})


class DividedTwice(Stabilised):
    """With rslora the factor is divided by the root of a quarter of the rank."""

    @property
    def s(self) -> float:
        return super().s * (2 if self.spec.rslora else 1)


class MergedOtherwise(Stabilised):
    """What is merged has α/r, whatever was asked for."""

    def merged(self) -> nn.Linear:
        kept, self.spec = self.spec, dataclasses.replace(self.spec, rslora=False)
        try:
            return super().merged()
        finally:
            self.spec = kept


@library("lora", "scale.rank_stabilised", "Buggy", "init shapes forward merge save_load")
class TakesItWithoutEffect(RankStabilised):
    """rslora is taken and makes no difference."""

    layer = wrapped.Lora


@library("lora", "scale.rank_stabilised", "Buggy", "init shapes forward save_load")
class DividesTwice(RankStabilised):
    """The factor of rslora is another."""

    layer = DividedTwice


@library("lora", "merge.rank_stabilised", "Buggy", "init shapes forward scale save_load")
class MergesOtherwise(RankStabilised):
    """The merged layer's factor is another."""

    layer = MergedOtherwise


@library("lora", "save_load.rank_stabilised", "Buggy", "init shapes forward scale merge")
class LoadsOtherwise(RankStabilised):
    """Loading forgets rslora."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        found = super().load(base, spec, path)
        found.module.spec = dataclasses.replace(spec, rslora=False)
        return found

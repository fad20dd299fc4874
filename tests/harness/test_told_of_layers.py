"""What one layer does wrongly has its own name: where it drops, which tensors it holds, and which of them train."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import AdapterSpec
from tests.harness.test_told_by_name import bugs
from tests.harness.test_told_rightly import findings
from tests.subjects import broken, wrapped

# --- DoRA with a magnitude on the update alone, dropout on the whole output


class MagnitudeOnUpdate(wrapped.Dora):
    """W as it is, and m times the update."""

    def forward(self, x: Tensor) -> Tensor:
        d = self.drop(x.to(self.dtype))
        y = self.base(x)
        return (y + self.m * self.s * fn.linear(fn.linear(d, self.A), self.B)).to(y.dtype)


class DropsItsOutput(MagnitudeOnUpdate):
    """Dropout on what the layer returns."""

    def forward(self, x: Tensor) -> Tensor:
        update = self.m * self.s * fn.linear(fn.linear(x.to(self.dtype), self.A), self.B)
        y = self.base(x)
        return self.drop((y + update).to(y.dtype))


class DropsOfAnUnknownFunction(wrapped.Dora):
    """Dropout on what the layer returns, which nothing in the catalogue computes."""

    def forward(self, x: Tensor) -> Tensor:
        p, self.drop.p = self.drop.p, 0.0
        y = super().forward(x)
        self.drop.p = p
        return self.drop(1.7 * y)


class OfAnUnknownFunction(wrapped.Dora):
    """A function that nothing in the catalogue computes, with its dropout where it has to be."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7 * super().forward(x)


ON_OUTPUT = "dropout is applied to the output of the whole layer, the base's part included"


@pytest.mark.parametrize("layer", [MagnitudeOnUpdate, DropsItsOutput])
def test_a_magnitude_on_the_update_alone_has_its_name(layer: type[wrapped.Dora]) -> None:
    (title,) = bugs(layer, "dora", "forward.random_parameters")
    assert title.startswith("the magnitude m multiplies the update alone, and nothing is normalised")


@pytest.mark.parametrize("layer", [DropsItsOutput, DropsOfAnUnknownFunction])
def test_dropout_on_the_whole_output_is_told_whatever_the_function(layer: type[wrapped.Dora]) -> None:
    (title,) = bugs(layer, "dora", "dropout.placement")
    assert title == ON_OUTPUT


@pytest.mark.parametrize("layer", [wrapped.Dora, broken.DoraHalfDropped, OfAnUnknownFunction])
def test_dropout_elsewhere_is_not_told_of_the_output(layer: type[wrapped.Dora]) -> None:
    assert ON_OUTPUT not in bugs(layer, "dora", "dropout.placement")


# --- another rank than was asked for


class LowersItsRank(wrapped.Pissa):
    """Takes at most one triple less than there are."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        most = max(min(base.in_features, base.out_features) - 1, 1)
        super().__init__(base, dataclasses.replace(spec, rank=min(spec.rank, most)))


class LowersItsRankAloud(LowersItsRank):
    """And says so."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.spec.rank < spec.rank:
            warnings.warn("the rank is too large for this layer, and was lowered", stacklevel=1)


class OneRowMore(wrapped.Lora):
    """A has a row that B has no column for: no rank is it."""

    def build(self) -> None:
        super().build()
        self.A = nn.Parameter(torch.cat([self.A, self.A[:1]]).detach())

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), self.A[:-1]), self.B) * self.s


def test_a_rank_that_is_lowered_is_told_as_that() -> None:
    (title,) = bugs(LowersItsRank, "pissa", "shapes.canonical")
    assert title == "the rank that is asked for is silently lowered"
    (title,) = bugs(LowersItsRankAloud, "pissa", "shapes.canonical")
    assert title == "the rank that is asked for is lowered, which is said aloud"
    (title,) = bugs(OneRowMore, "lora", "shapes.canonical")
    assert title == "the adapter's tensors are not the reference's"
    assert not bugs(wrapped.Pissa, "pissa", "shapes.canonical")


def emptied(layer: wrapped.Lora) -> None:
    """A and B without entries."""
    layer.A, layer.B = nn.Parameter(layer.A[:0].detach()), nn.Parameter(layer.B[:, :0].detach())


def at_least_one(spec: AdapterSpec) -> AdapterSpec:
    """The spec, of rank one where it is zero. Raises ValueError for a negative one."""
    if spec.rank < 0:
        raise ValueError("a rank is no negative number")
    return dataclasses.replace(spec, rank=max(spec.rank, 1))


class MagnitudeAlone(wrapped.Dora):
    """Of a rank of zero m is left."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, at_least_one(spec))
        if spec.rank == 0:
            emptied(self)


class PlainAtRankZero(wrapped.Lora):
    """A rank of zero leaves the layer plain, as loralib does."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, at_least_one(spec))
        if spec.rank == 0:
            emptied(self)


def test_a_rank_of_zero_is_told_by_what_is_trained_of_it() -> None:
    (title,) = bugs(MagnitudeAlone, "dora", "shapes.bad_rank")
    assert title == "a rank of zero is accepted: the adapter has no A and no B, and trains m alone"
    (found,) = findings(wrapped.Library({"lora": PlainAtRankZero}), ["shapes.bad_rank"])
    assert (found.title, found.tag) == ("a rank of zero is accepted", "OK-undoc")
    assert not bugs(wrapped.Dora, "dora", "shapes.bad_rank")


# --- one side of a layer alone


class GatesTheInput(wrapped.Ia3):
    """Whatever side is asked for."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, feedforward=True))


class OneSide(wrapped.Library):
    """(IA)³ that gates the input only."""

    def __init__(self) -> None:
        super().__init__({"ia3": GatesTheInput})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        return dataclasses.replace(super().nearest(spec), feedforward=spec.variant == "ia3")


class OneSideUnsaid(OneSide):
    """Gates."""


@pytest.mark.parametrize(("subject", "tag"), [(OneSide(), "OK-doc"), (OneSideUnsaid(), "OK-undoc")])
def test_the_side_that_is_not_there_is_the_missing_mode(subject: wrapped.Library, tag: str) -> None:
    """And not that the other one changes nothing."""
    (found,) = findings(subject, ["shapes.modes", "scale.specs"], "ia3")
    assert found.title.startswith("A mode of the references is missing: a gate on the output")
    assert (found.tag, found.aspect) == (tag, "forward")


def test_a_side_that_makes_no_difference_is_still_told() -> None:
    (title,) = bugs(GatesTheInput, "ia3", "shapes.modes")
    assert title == "a mode of the reference is not there, or its option changes nothing"
    assert not findings(wrapped.Library(), ["shapes.modes", "scale.specs"], "ia3")

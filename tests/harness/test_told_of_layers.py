"""What one layer does wrongly has its own name: where it drops, which tensors it holds, and which of them train."""

from __future__ import annotations

import pytest
from torch import Tensor
from torch.nn import functional as fn

from tests.harness.test_told_by_name import bugs
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

"""A function that no known mistake computes is told by what it is like: not affine, a row not alone, nearly right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from tests.subjects import wrapped
from tests.subjects.judged import audit


class Activated(wrapped.Lora):
    """There is an activation on the update."""

    def branch(self, x: Tensor) -> Tensor:
        return torch.tanh(super().branch(x))


class RowsMixed(wrapped.Lora):
    """The batch's mean is taken from the update's input."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x - x.mean(dim=0, keepdim=True) if x.dim() > 1 else x)


class Coarse(wrapped.Lora):
    """The update's input is rounded to bfloat16."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.bfloat16().to(x.dtype))


class WithAnEpsilon(wrapped.Lora):
    """A is divided by its rows' norms and multiplied by them again, but for a small constant."""

    def branch(self, x: Tensor) -> Tensor:
        norms = self.A.norm(dim=1)
        return super().branch(x) * (norms / (norms + 1e-5)).mean()


class WithoutEffect(wrapped.Lora):
    """What is added is nothing."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * 0


class InputCut(wrapped.Lora):
    """The branch's input is cut from the graph."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.detach())


class Otherwise(wrapped.Lora):
    """Affine, row by row, and another function: the update's input is shifted by one feature."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.roll(1, dims=-1))


class Subtracted(wrapped.Lora):
    """The update is subtracted."""

    def branch(self, x: Tensor) -> Tensor:
        return -super().branch(x)


class BiasTwice(wrapped.Lora):
    """The update brings the base's bias along."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y if self.base.bias is None else y + self.base.bias.to(y.dtype)


class SubtractedInTraining(wrapped.Lora):
    """The update is subtracted in training mode alone; evaluation folds the right one in."""

    def branch(self, x: Tensor) -> Tensor:
        return -super().branch(x) if self.training else super().branch(x)


class LeftFolded(wrapped.Lora):
    """Evaluation folds the update into the base weight, and training does not take it out."""

    folded = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.base(x)

    def train(self, mode: bool = True) -> LeftFolded:
        if not mode and not self.folded and hasattr(self, "B"):
            with torch.no_grad():
                self.base.weight += (self.s * self.B @ self.A).to(self.base.weight.dtype)
            self.folded = True
        return super().train(mode)


class OtherInEvaluation(wrapped.Lora):
    """Evaluation leaves the update out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.base(x)


def titles(
    layer: type[wrapped.Lora], checks: tuple[str, ...] = ("forward.random_parameters", "forward.linear")
) -> list[str]:
    """The titles of what is found of the function and of its kind."""

    def asked(check: Check) -> bool:
        return check.id in checks

    subject = wrapped.Library({"lora": layer})
    return [f.title for f in audit(subject, ["lora"], checks=asked, profile=Profile("quick", 4, 0)).findings]


NOT_THE_REFERENCES = "the output is not the reference's"


@pytest.mark.parametrize(
    ("layer", "title"),
    [
        (Activated, f"{NOT_THE_REFERENCES}: the layer is not affine in its input"),
        (RowsMixed, f"{NOT_THE_REFERENCES}: a row of a batch is answered otherwise than alone"),
        (Coarse, "the output is the reference's to the digits of half precision only"),
        (WithAnEpsilon, "the output is a little further from the reference's than rounding explains"),
        (WithoutEffect, "the layer answers as its base does, whatever the adapter's tensors are"),
        (Otherwise, NOT_THE_REFERENCES),
        (Subtracted, "the adapter's update is subtracted instead of added"),
        (SubtractedInTraining, "the adapter's update is subtracted instead of added"),
        (BiasTwice, "the base bias is added twice"),
    ],
)
def test_a_wrong_function_is_told_by_what_it_is_like(layer: type[wrapped.Lora], title: str) -> None:
    assert titles(layer) == [title]


def test_a_right_function_is_not_told_of() -> None:
    assert titles(wrapped.Lora, ("forward.random_parameters", "forward.linear", "forward.eval_mode")) == []


@pytest.mark.parametrize(
    ("layer", "title"),
    [
        (
            LeftFolded,
            "evaluating changes the layer: back in training mode it computes another function than before",
        ),
        (
            OtherInEvaluation,
            "in evaluation mode, and not in training mode, the layer answers as its base does, whatever the adapter's "
            "tensors are",
        ),
    ],
)
def test_what_evaluating_leaves_is_no_other_function(layer: type[wrapped.Lora], title: str) -> None:
    """Where evaluation answers as training did, and training no longer does, evaluating is what is wrong."""
    assert titles(layer, ("forward.eval_mode",)) == [title]


def test_the_rounding_is_coarse_enough_to_be_seen() -> None:
    """What the subject above computes is not the right function within single precision."""
    x = fn.normalize(torch.linspace(1, 2, 7), dim=0)
    assert not torch.allclose(x.bfloat16().float(), x, rtol=1e-4)


def test_a_cut_input_is_told_alone() -> None:
    """Output and the adapter's gradients are right, and so is the base's part of the input's."""
    assert titles(
        InputCut, ("forward.random_parameters", "forward.input_gradient", "step0.input_gradient")
    ) == ["no gradient goes through the adapter to the input"]

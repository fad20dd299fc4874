"""What is wrong with an adapted model that is not PEFT's, as far as what differs says it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from harness.cases.tiny_models import ModelCase, logits
from harness.compare import rounding
from harness.compare.adapted_model import Quantities
from harness.compare.thresholds import ROUNDOFFS
from reports.model import Diagnosis

WITHOUT_EFFECT = Diagnosis(
    "targets.without_effect",
    "in a whole model the adapters have no effect: far from their start, too, the base answers",
    "what is trained changes nothing: the adapted model stays the base model",
    remedy="let what the model computes depend on the adapters' tensors: they have to come into its forward pass",
)
LAYER_WITHOUT_EFFECT = dataclasses.replace(
    WITHOUT_EFFECT,
    summary="in a whole model an adapted layer answers as its base: its adapter, far from its start, has no effect",
)
GRADIENTS = Diagnosis(
    "targets.gradients",
    "the adapted model's logits are PEFT's, and a gradient is not",
    "a whole model is trained otherwise than with PEFT",
    remedy="follow this gradient through the model's backward pass: with the same values the logits are PEFT's, "
    "so that which layers are adapted, and what they compute, is right",
)
TRAINING = Diagnosis(
    "targets.training",
    "the adapted model's logits and gradients are PEFT's, and after some steps of SGD it is another model",
    "a whole model is trained otherwise than with PEFT",
    remedy="look for what a training step changes besides the adapters' parameters: which layers are adapted, what "
    "they compute and their gradients are right",
)


def of_the_model(case: ModelCase, quantity: str, actual: Quantities) -> Diagnosis | None:
    """What it says that this is the first quantity of `observe` to differ; None where that says nothing.

    A gradient that was not there to be observed is one of what is frozen, and no mistake of the backward pass.
    """
    if quantity == "logits":
        return WITHOUT_EFFECT if _answers_as_the_base(case, actual) else None
    if "steps" in quantity:
        return TRAINING if quantity in actual else None
    return GRADIENTS if quantity in actual and quantity.startswith("gradient") else None


def of_a_layer(case: ModelCase, name: str, x: Tensor, actual: Tensor) -> Diagnosis | None:
    """What it says that a layer's output for x differs; None where that says nothing."""
    with torch.no_grad():
        plain = case.base().get_submodule(name)(x)
    return LAYER_WITHOUT_EFFECT if _equal(actual, plain, ROUNDOFFS["layer of a model"]) else None


def _answers_as_the_base(case: ModelCase, actual: Quantities) -> bool:
    with torch.no_grad():
        plain = logits(case.base(), case)
    return _equal(actual["logits"], plain, ROUNDOFFS["checkpoint"])


def _equal(actual: Tensor, plain: Tensor, roundoffs: float) -> bool:
    """Whether two outputs are one, perhaps of two environments, whose sums are rounded otherwise."""
    exact = plain.double()
    return (
        rounding.ratio(actual.double(), exact, rounding.roundoff(plain.dtype) * rounding.norm(exact))
        <= roundoffs
    )

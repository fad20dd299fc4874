"""Parameters outside the adapter's tensors that are marked as trainable: whose they are, and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from reports.model import Diagnosis

ASKS_IN_VAIN = Diagnosis(
    "shapes.asks_in_vain",
    "the base layer's parameters are marked as trainable, and get no gradient",
    "who counts or lists what is trained by requires_grad gets the whole model",
    documented_by=("not track gradients", "no gradients? (of|for|to) the (base|original)"),
    remedy="call requires_grad_(False) on the base layer when the adapter is made",
)
FURTHER_IN_VAIN = Diagnosis(
    "shapes.further_in_vain",
    "a parameter beside the adapter's tensors, none of the base's, is marked as trainable and gets no gradient",
    "who counts or lists what is trained by requires_grad counts it, too; training does not move it",
    severity="minor",
    remedy="make it a buffer or a plain number, or give it requires_grad=False",
)


def asked_in_vain(
    loose: Mapping[str, Tensor], base: Iterable[Tensor], with_gradient: bool
) -> Diagnosis | None:
    """What trainable parameters outside the adapter mean where they are not trained; None where they are.

    ``base``: the base's own values. A parameter is the base's where it holds one of them.
    """
    if with_gradient:
        return None
    held = list(base)
    return ASKS_IN_VAIN if any(_is_one_of(held, t) for t in loose.values()) else FURTHER_IN_VAIN


def _is_one_of(held: list[Tensor], tensor: Tensor) -> bool:
    return any(tensor.shape == each.shape and torch.equal(tensor.detach(), each) for each in held)

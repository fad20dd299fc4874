"""Parameters outside the adapter's tensors that are marked as trainable: whose they are, and what it means."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare.context import Context
from harness.compare.layer import Layer, answering
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.compare.thresholds import CAST
from oracles.variants.record import OWN_OUT, OWN_RANK
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
FURTHER_TRAINED = Diagnosis(
    "shapes.further_trained",
    "the adapter trains what the method does not have: {}",
    "training moves more than the method's tensors, for which its files have a place",
    remedy="leave {} out, or state in the docstring that it is an extension of the method",
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


SAYS_MUCH = 5  # letters of a name that a docstring has for no other reason


def loose(layer: Layer) -> dict[str, Tensor]:
    """The trainable parameters that no slot shows, by name."""
    slots = {id(layer.raw(n)) for n in layer.names}
    return {n: p for n, p in layer.module.named_parameters() if p.requires_grad and id(p) not in slots}


def of_the_base(layer: Layer, case: Case) -> dict[str, str]:
    """Which of the loose parameters are the base's, by name: "weight" or "bias".

    It is one that has the base's values; or their shape, where no other tensor of the layer has the values.
    """
    W, b = case.weight.detach(), case.bias_vector
    there = [*layer.module.parameters(), *layer.module.buffers()]
    told = {}
    for kind, values in (("weight", [W, W.T]), ("bias", [] if b is None else [b.detach()])):
        kept = any(_holds(t, value) for t in there for value in values)
        for name, tensor in loose(layer).items():
            if any(_holds(tensor, v) if kept else tensor.shape == v.shape for v in values):
                told[name] = kind
    return told


def _holds(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and torch.allclose(
        tensor.detach().double(), value.double(), rtol=CAST, atol=0
    )


def own_parameters(layer: Layer, case: Case) -> dict[str, Tensor]:
    """The trained parameters that are neither a slot's nor the base's, by name."""
    base = of_the_base(layer, case)
    return {n: p for n, p in loose(layer).items() if n not in base}


def learns_beside(layer: Layer, case: Case) -> bool:
    """Whether a trained parameter that is no slot's, and not as large as the base's, gets a gradient now."""
    layer.clear_gradients()
    y = layer(case.x)
    if y.requires_grad:
        with answering(layer.who, "the backward pass"):
            y.sum().backward()
    bases = (case.weight.numel(), case.out_features)
    own = [p for p in loose(layer).values() if p.dim() == 0 or p.numel() not in bases]
    found = any(p.grad is not None and bool(p.grad.any()) for p in own)
    layer.clear_gradients()
    return found


def own_vectors(layer: Layer, case: Case) -> dict[str, str]:
    """Of those, the names of vectors by what the equations call them: one of each kind at most."""
    own = {n: p for n, p in own_parameters(layer, case).items() if p.dim() == 1}
    found: dict[str, str] = {}
    for kind, size in ((OWN_OUT, case.out_features), (OWN_RANK, case.spec.rank)):
        names = [n for n, p in own.items() if len(p) == size]
        if len(names) == 1 and names[0] not in found.values():
            found[kind] = names[0]
    return found


def further_trained(layer: Layer, case: Case) -> Diagnosis | None:
    """What further trained parameters mean none of which is the base's; None where the catalogue may know them."""
    there, sizes = own_parameters(layer, case), {(case.out_features,), (case.spec.rank,)}
    if not there:
        return None
    known = any(m.has_own for m in case.variant.mistakes)
    if set(there) != set(loose(layer)) or (known and all(tuple(p.shape) in sizes for p in there.values())):
        return None
    names = ", ".join(f"`{name}`" for name in there)
    words = [name.rpartition(".")[2] for name in there]
    return dataclasses.replace(
        FURTHER_TRAINED,
        summary=FURTHER_TRAINED.summary.format(names),
        remedy=FURTHER_TRAINED.remedy.format(names),
        # A short word stands in a docstring for other reasons.
        documented_by=tuple(rf"\b{re.escape(w)}\b" for w in words)
        if min(map(len, words)) >= SAYS_MUCH
        else (),
    )


@contextmanager
def but_for_further(context: Context, case: Case) -> Iterator[None]:
    """What deviates in how the layer trains is told of the parameters that the method does not have, if it has such."""
    try:
        yield
    except Deviation as found:
        layer = context.layer(case)
        if further_trained(layer, case) is None or not learns_beside(layer, case):
            raise
        why = "the adapter trains what the method does not have, which shapes.frozen_base reports"
        raise ToldElsewhere(why, "shapes.frozen_base") from found

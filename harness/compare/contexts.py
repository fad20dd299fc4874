"""One layer asked in two contexts: what it computes there, and a copy of it in its place."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.layer import Layer, answering, situation
from harness.compare.outcome import Unverified
from harness.compare.probing import far_layer
from harness.compare.rounding import Quantities
from oracles.implementation import Adapted, Unsupported, identity

Call = Callable[[Tensor], Tensor]


def elsewhere(case: Case, turn: int) -> Case:
    """The same base and input with other parameters, the ``turn``-th."""
    other = case.but(seed=case.seed + turn)
    vars(other).update(
        weight=case.weight, bias_vector=case.bias_vector, input=case.input, cotangent=case.cotangent
    )
    return other


def parameters(layer: Layer, case: Case) -> dict[str, Tensor]:
    """The canonical values far from the start that ``case`` stands for."""
    return case.far(dict.fromkeys(layer.names))


def trained_with_dropout(context: Context, case: Case, rate: float) -> tuple[Layer, Case]:
    """A far layer in training mode, with dropout where variant and subject have it; and the case that it is of."""
    if context.variant.has_dropout:
        try:
            dropping = case.but(dropout=rate)
            return _training(far_layer(context, dropping)), dropping
        except Unsupported:
            pass  # told by the checks of dropout
    return _training(far_layer(context, case)), case


def _training(layer: Layer) -> Layer:
    layer.train()
    return layer


def observe(
    layer: Layer, case: Case, call: Call | None = None, *, wants_gradient: bool = True, where: str = ""
) -> Quantities:
    """Output and gradients of ``call(x)``, ``layer`` itself by default; float64.

    ``wants_gradient``: whether x does; ``where`` is said of what is raised.
    """
    layer.clear_gradients()
    x = case.x.requires_grad_(wants_gradient)
    with situation(where) if where else nullcontext():
        y = rounding.of_the_layers_shape(layer, case, (call or layer)(x), x)
        if y.requires_grad:
            with answering(layer.who, "the backward pass"):
                y.backward(case.cotangent.to(y.dtype))
    found = {"output": y.detach().double(), **gradients(layer)}
    if wants_gradient:
        found["gradient of x"] = torch.zeros_like(x).double() if x.grad is None else x.grad.double()
    layer.clear_gradients()
    return found


def gradients(layer: Layer) -> Quantities:
    """The gradients that the slots hold now, float64."""
    trainable = [n for n in layer.names if layer.raw(n).requires_grad]
    return {f"gradient of {n}": layer.gradient(n) for n in trainable}


def same(
    context: Context, case: Case, where: str, actual: Quantities, expected: Quantities, growth: float = 1.0
) -> None:
    """Raise Deviation unless the subject computes in some context what it computes without.

    Another path through the same formula may round otherwise: measured at the point that ``case`` stands for.
    """
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    noise = functools.cache(lambda: _noise(context, case))
    for name in [n for n in expected if n in actual]:
        own = growth * unit * float(torch.linalg.vector_norm(expected[name]))
        measured = functools.partial(lambda n, own: max(own, growth * noise().get(n, 0.0)), name, own)
        context.judge(case, f"{name} {where}", actual[name], expected[name], own, noise=measured)


def _noise(context: Context, case: Case) -> dict[str, float]:
    try:
        with torch.enable_grad():
            return context.noise(context.pair(case, "far"), gradients=True)
    except Unverified:
        return {}  # a slot is missing: the outputs' own size has to do


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names, live."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )


def places(layer: Layer) -> dict[str, str]:
    """Slot -> the name of its tensor in the module, for those that are registered there."""
    names = {id(tensor): name for name, tensor in tensors(layer.module).items()}
    return {slot: names[id(layer.raw(slot))] for slot in layer.names if id(layer.raw(slot)) in names}


def with_live_gradients(layer: Layer) -> Layer:
    """The layer whose gradients are those of the live tensors.

    A slot's own ``gradient`` may look at the layer that it was made for, where a copy holds other values.
    """
    slots = {
        name: slot if slot.gradient is None else dataclasses.replace(slot, gradient=identity)
        for name, slot in layer.slots.items()
    }
    return Layer(layer.adapted, layer.who, slots)


def counterpart(layer: Layer, module: nn.Module, at: dict[str, str]) -> Layer:
    """``module``, a copy of the layer's, as a layer: its slots are the tensors of the same names, ``at``."""
    there = tensors(module)
    slots = {
        slot: dataclasses.replace(layer.slots[slot], tensor=there[name])
        for slot, name in at.items()
        if name in there
    }
    return Layer(Adapted(module, slots), layer.who)

"""Smoke first: is the *wrapper* around the subject sound? A mistake there is not laid at the library's door."""

from __future__ import annotations

import torch

from harness import guard
from harness.cases import Case
from harness.layer import BadAnswer, Layer, SubjectRaised, adapt
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.variants import Variant


def broken_wrapper(subject: Implementation, variant: Variant) -> str | None:
    """One sentence on what is wrong with the wrapper, or None. What the library itself does wrong is not looked at."""
    case = Case(AdapterSpec(variant.id, rank=2, alpha=3.0), 5, 4, bias=True, batch=(3,))
    try:
        with guard.global_state(), guard.time_limit():
            torch.manual_seed(0)
            return _inspect(adapt(subject, case.base(), case.spec), case)
    except BadAnswer as error:
        return str(error)
    except (SubjectRaised, Unsupported, guard.StateChanged, guard.ClaimTimeout):
        return None  # the library's: the claims themselves will say so


def _inspect(layer: Layer, case: Case) -> str | None:
    if not isinstance(layer.module, torch.nn.Module):
        return f"Adapted.module is a {type(layer.module).__name__}, expected an nn.Module"
    if not layer.names:
        return "Adapted.slots is empty: there is nothing to audit"
    for name in layer.names:
        if sentence := _inspect_slot(layer, name):
            return sentence
    return _inspect_call(layer, case)


def _inspect_slot(layer: Layer, name: str) -> str | None:
    tensor = layer.raw(name)
    if not isinstance(tensor, torch.Tensor):
        return f"slot {name!r} holds a {type(tensor).__name__}, expected a Tensor"
    view = layer.view(name)
    if not isinstance(view, torch.Tensor):
        return f"the view of slot {name!r} returns a {type(view).__name__}, expected a Tensor"
    if view.numel() and view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
        return f"the view of slot {name!r} does not share storage with its tensor: writes do not go through"
    return None


def _inspect_call(layer: Layer, case: Case) -> str | None:
    before = layer(case.x)
    expected = (*case.x.shape[:-1], case.out_features)
    if tuple(before.shape) != expected:
        return f"module(x) has shape {tuple(before.shape)}, expected {expected}"
    if _influences(layer, case, before) or _registered(layer):
        return None
    return "no slot influences module(x), and none is a tensor of the module: the slots are copies"


def _influences(layer: Layer, case: Case, before: torch.Tensor) -> bool:
    generator = case.generator(5)
    for name in layer.names:
        value = layer.value(name)
        layer.write({name: torch.randn(value.shape, generator=generator, dtype=torch.float64) + 2})
    return not torch.equal(layer(case.x), before)


def _registered(layer: Layer) -> bool:
    owned = {id(t) for t in [*layer.module.parameters(), *layer.module.buffers()]}
    return any(id(layer.raw(name)) in owned for name in layer.names)

"""merge, merge_in_place, unmerge: the active adapters folded into their layer's weight."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .adapter import require_adapted, strip, unfreeze
from .kinds import dense
from .quantised import dequantised, requantised
from .switch import rest, stand_in, standing_in, state_of, work
from .variant import Variant, described, kind, widened

__all__ = ["merge", "merge_in_place", "unmerge"]


def merge(model: nn.Module) -> nn.Module:
    """Fold the active adapters into weight and bias of their layers and take all adapters off: plain layers remain.

    ``model`` itself is changed and returned; merge a ``copy.deepcopy`` to keep the adapted one, or use
    :func:`merge_in_place`. Computed in fp32 (fp64 for an fp64 base) and rounded once; a quantised weight is
    quantised anew. Raises ValueError, and changes nothing, if one of the weights cannot hold the update.
    """
    layers = require_adapted(model)
    _check(layers)
    for layer in layers.values():
        made = standing_in(layer) if state_of(layer).merged else folded(layer)
        strip(layer)
        for name, tensor in made.items():
            setattr(layer, name, tensor)
    unfreeze(model)
    return model


def merge_in_place(model: nn.Module) -> None:
    """Fold the active adapters into their layers' weights, which stay adapted: :func:`unmerge` takes them out.

    The layer's own weight and bias are kept aside, so that :func:`unmerge` and ``detach`` put the very same
    tensors back, at the price of their memory. A merged layer has no hook and trains nothing. Raises ValueError,
    and changes nothing, if a layer is merged already or its weight cannot hold the update.
    """
    layers = require_adapted(model)
    if merged := [name for name, layer in layers.items() if state_of(layer).merged]:
        raise ValueError(f"{described(merged[0])} is merged already; unmerge it first")
    _check(layers)
    for layer in layers.values():
        made, active = folded(layer), state_of(layer).active
        rest(layer)
        stand_in(layer, active, made)


def unmerge(model: nn.Module) -> None:
    """Take out what :func:`merge_in_place` folded in: the layers' own tensors come back bit for bit, the adapters act.

    Raises ValueError if nothing is merged.
    """
    merged = [layer for layer in require_adapted(model).values() if state_of(layer).merged]
    if not merged:
        raise ValueError(f"this {type(model).__name__} is not merged in place; there is nothing to unmerge")
    for layer in merged:
        rest(layer)
        work(layer, state_of(layer).active)


def _check(layers: dict[str, nn.Module]) -> None:
    """Raises ValueError if an adapter that acts cannot be folded into its layer."""
    for name, layer in layers.items():
        for adapter in state_of(layer).acting:
            if problem := adapter.merge_problem(layer):
                raise ValueError(f"cannot merge into {described(name)}: {problem}")


@torch.no_grad()
def folded(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and, where it changes, bias of a plain layer that computes what the adapted one does."""
    acting = state_of(layer).acting
    if not acting:
        return {}
    W, bias = _standing(layer), getattr(layer, "bias", None)
    b = None if bias is None else bias.detach().to(W.dtype)
    merged, shift = _together([_in(adapter, W.dtype) for adapter in acting], W, b)
    made = {"weight": _weight(layer, merged)}
    if shift is not None and shift is not b:
        made["bias"] = nn.Parameter(shift.to(bias.dtype), requires_grad=False)  # type: ignore[union-attr]
    return made


def _standing(layer: nn.Module) -> Tensor:
    """The matrix (out, in) that the layer computes with now, PiSSA's residual where there is one, in fp32 or fp64."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    numbers = weight if dense(layer.weight) else dequantised(layer)
    assert numbers is not None
    return widened(kind(layer).matrix(numbers))


def _in(adapter: Variant, dtype: torch.dtype) -> Variant:
    """The adapter in the dtype to compute in, a copy where it is in another."""
    same = all(p.dtype == dtype for p in adapter.parameters())
    return adapter if same else copy.deepcopy(adapter).to(dtype)


def _together(adapters: list[Variant], W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Those that add each change W by what they would alone; the others follow one another."""
    if len(adapters) > 1 and adapters[0].joins == "adds":
        changes = [adapter.merged(W, b)[0] - W for adapter in adapters]
        return W + sum(changes[1:], changes[0]), b
    for adapter in adapters:
        W, b = adapter.merged(W, b)
    return W, b


def _weight(layer: nn.Module, W: Tensor) -> nn.Parameter:
    """W as the layer stores it: its dtype and layout, quantised as its own."""
    now: Tensor = layer.weight  # type: ignore[assignment]
    if dense(now):
        # A new parameter, not a write: a weight tied to another module is not this layer's alone.
        return nn.Parameter(kind(layer).stored(W, layer).to(now.dtype), requires_grad=False)
    return requantised(layer, W)

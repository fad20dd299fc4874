"""Which adapters of a layer act: forward hooks that are there only while something is to be done.

A layer may have several adapters, each a submodule under its own name; those that are active act together as their
method says. A layer in which none acts has no hook and is the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .variant import OWN, Variant, add, put_aside, put_back

__all__ = [
    "DEFAULT",
    "STATE",
    "State",
    "adapted_layers",
    "alone",
    "child",
    "named",
    "rest",
    "resume",
    "stand_in",
    "standing_in",
    "state_of",
    "suspend",
    "work",
]

DEFAULT = "default"
CHILD = "lora_lite"  # the default adapter's name among its layer's submodules; others have theirs behind it
STATE = "_lora_lite_state"


@dataclass
class State:
    """Of one layer. Copied and pickled with it, so that a copy has its own."""

    active: tuple[str, ...] = ()  # in the order in which they were asked for
    acting: tuple[Variant, ...] = ()  # the active ones, unless they are merged or switched off
    merged: bool = False  # whether the active ones are folded into the weight
    handles: tuple[Any, ...] = ()


def child(name: str) -> str:
    """The submodule's name of an adapter. Raises ValueError for a name that cannot be one."""
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"an adapter's name must be a text without a dot, got {name!r}")
    return CHILD if name == DEFAULT else f"{CHILD}_{name}"


def named(layer: nn.Module) -> dict[str, Variant]:
    """Name -> adapter, of one layer."""
    found = {}
    for key, module in layer._modules.items():
        if isinstance(module, Variant):
            found[DEFAULT if key == CHILD else key.removeprefix(f"{CHILD}_")] = module
    return found


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for every layer that has an adapter, active or not."""
    return {name: module for name, module in model.named_modules() if STATE in module.__dict__}


def state_of(layer: nn.Module) -> State:
    """The layer's state; a layer without adapters is given an empty one."""
    return layer.__dict__.setdefault(STATE, State())


def work(layer: nn.Module, active: tuple[str, ...]) -> None:
    """Let these adapters act; call :func:`rest` first."""
    state, adapters = state_of(layer), named(layer)
    state.active = active
    state.acting = tuple(adapters[name] for name in active)
    for adapter in state.acting:
        adapter.install(layer)
    sides = [adapter.hooks() for adapter in state.acting]
    if any(before for before, _ in sides):
        state.handles += (layer.register_forward_pre_hook(_before, with_kwargs=True),)
    if any(after for _, after in sides):
        state.handles += (layer.register_forward_hook(_after, with_kwargs=True),)


def rest(layer: nn.Module) -> None:
    """Let none act: no hook, and the layer's own weight in its place. What is active is remembered."""
    state = state_of(layer)
    for handle in state.handles:
        handle.remove()
    for adapter in reversed(state.acting):
        adapter.remove(layer)
    put_back(layer)
    state.acting, state.handles, state.merged = (), (), False


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
    """Forward pre-hook. A plain function that finds the adapters on the layer, so a deep copy has its own.

    Of a chain [a, b], W H_a H_b, the last one meets x first.
    """
    x = _input(args, kwargs)
    for adapter in reversed(layer.__dict__[STATE].acting):
        x = adapter.before(layer, x)
    return (x,), {}


def _after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
    """Forward hook."""
    acting: tuple[Variant, ...] = layer.__dict__[STATE].acting
    x = _input(args, kwargs)
    if len(acting) == 1:
        return acting[0].after(layer, x, y)
    if acting[0].joins == "adds":
        changes = [adapter.change(layer, x, y) for adapter in acting]
        return add(y, sum(changes[1:], changes[0]))
    for adapter in acting:
        y = adapter.after(layer, x, y)
    return y


def alone(layer: nn.Module) -> bool:
    """Whether one adapter acts on the layer."""
    return len(layer.__dict__[STATE].acting) == 1


@dataclass
class Kept:
    """What :func:`suspend` switched off."""

    active: tuple[str, ...]
    merged: dict[str, nn.Parameter] | None


def suspend(layer: nn.Module) -> Kept:
    """Let the base answer; :func:`resume` undoes it."""
    state = state_of(layer)
    merged = standing_in(layer) if state.merged else None
    rest(layer)
    return Kept(state.active, merged)


def resume(layer: nn.Module, kept: Kept) -> None:
    """Let act again what acted before, unless it was taken off meanwhile."""
    if STATE not in layer.__dict__:
        return
    rest(layer)
    active = tuple(name for name in kept.active if name in named(layer))
    if kept.merged is None or active != kept.active:
        work(layer, active)
        return
    stand_in(layer, active, kept.merged)


def standing_in(layer: nn.Module) -> dict[str, nn.Parameter]:
    """What stands in the place of the layer's own tensors, by attribute."""
    return {name: getattr(layer, name) for name in layer.__dict__.get(OWN, {})}


def stand_in(layer: nn.Module, active: tuple[str, ...], merged: dict[str, nn.Parameter]) -> None:
    """Let a weight with the active adapters folded in act in their place; call :func:`rest` first."""
    state = state_of(layer)
    for name, tensor in merged.items():
        put_aside(layer, name, tensor)
    state.active, state.merged = active, True

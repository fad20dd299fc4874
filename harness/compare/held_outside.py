"""Tensors that a layer keeps where torch does not look: in a plain dict, list or object instead of as its parameters.

They act, and they may well be trained by who has them; but an optimiser over the module's parameters, its state dict,
``.to()`` and ``eval()`` pass them by.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from harness.compare.layer import Layer
from harness.compare.outcome import Deviation
from reports.model import Diagnosis

HELD_OUTSIDE = Diagnosis(
    "shapes.held_outside",
    "the adapter's tensors are no parameters of the module, which keeps them where torch does not look (in a plain "
    "dict, list or object)",
    "an optimiser over the module's parameters trains none of them, its state dict leaves them out, and neither .to() "
    "nor eval() reaches the adapter",
    severity="critical",
    remedy="keep the adapter in submodules, an nn.ModuleDict or an nn.ParameterDict of the layer",
)
OF_TORCH = frozenset(vars(nn.Module()))  # what every module has: its parameters, hooks and submodules
DEEPEST = 4  # an attribute's dict of dicts of objects
SKIPPED = (str, bytes, int, float, type, types.FunctionType, types.MethodType, types.ModuleType)


def held_outside(layer: Layer, x: Tensor) -> list[str]:
    """The slots of trained tensors that the module has in an attribute of its own, and not as a parameter.

    None is what is computed, what another object than the module has (a hook, a network of adapters), and what acts
    by way of a function with a backward pass of its own alone: another framework's, shown to torch. ``x``: an input.
    """
    registered = {_storage(t) for t in (*layer.module.parameters(), *layer.module.buffers())}
    trained = [n for n in layer.names if layer.raw(n).is_leaf and layer.raw(n).requires_grad]
    loose = [n for n in trained if _storage(layer.raw(n)) not in registered]
    if not loose:
        return []
    kept = {_storage(t) for held in _in_attributes(layer.module) for t in _tensors(held)}
    y = layer(x)
    return [n for n in loose if _storage(layer.raw(n)) in kept and not _is_shown(layer.raw(n), y)]


def _is_shown(tensor: Tensor, y: Tensor) -> bool:
    """Whether ``tensor`` acts on ``y``, and through functions with a backward pass of their own alone."""
    nodes, users = [y.grad_fn], []
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        for other, _ in node.next_functions if node is not None else ():
            if getattr(other, "variable", None) is tensor:
                users.append(node)
            if other not in seen:
                seen.add(other)
                nodes.append(other)
    return bool(users) and all(isinstance(node, BackwardCFunction) for node in users)


@contextmanager
def passed_by(layer: Layer, x: Tensor) -> Iterator[None]:
    """What deviates because torch passes the adapter by, as a state dict does, is told of where its tensors are."""
    try:
        yield
    except Deviation as found:
        if found.diagnosis is None and held_outside(layer, x):
            found.diagnosis = HELD_OUTSIDE
        raise


def stays_in_training(layer: Layer) -> bool:
    """Whether a module that is held outside is in training mode, and the layer itself is not."""
    own = set(layer.module.modules())
    outside = [m for m in _in_attributes(layer.module) if isinstance(m, nn.Module) and m not in own]
    return not layer.module.training and any(part.training for m in outside for part in m.modules())


def _in_attributes(module: nn.Module) -> Iterator[Tensor | nn.Module]:
    """The tensors and modules in what a module and its submodules have beside torch's own."""
    seen: set[int] = set()
    for part in module.modules():
        own = (value for name, value in vars(part).items() if name not in OF_TORCH)
        yield from _within(own, DEEPEST, seen)


def _within(values: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Tensor | nn.Module]:
    for value in values:
        if isinstance(value, SKIPPED) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor | nn.Module):
            yield value
        elif depth:
            yield from _within(_parts(value), depth - 1, seen)


def _parts(value: Any) -> Iterable[Any]:
    """What a container holds, or an object in its attributes."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(getattr(value, "__dict__", {}).values())


def _tensors(held: Tensor | nn.Module) -> list[Tensor]:
    return [held] if isinstance(held, Tensor) else [*held.parameters(), *held.buffers()]


def _storage(tensor: Tensor) -> int:
    """Where a tensor's numbers are: its own identity where there are none, or none that can be told."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):
        return id(tensor)

"""attach, detach, merge, save, load: adapters sit on linear layers as forward hooks, nothing is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from . import checkpoint
from .config import AdapterConfig, IA3Config
from .target import default_feedforward, find_targets, matches, model_type
from .variant import (
    Variant,
    bias_of,
    described,
    in_layout,
    never_called,
    variant_of,
    weight_of,
    weight_problem,
    widened,
)

__all__ = ["adapters", "attach", "detach", "load", "merge", "parameters", "save"]

CHILD = "lora_lite"  # the adapter's name among its layer's submodules
FROZEN = "_lora_lite_frozen"  # a module's own parameters that attach froze
HANDLES = "_lora_lite_handles"


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
    """Forward pre-hook. A plain function that finds the adapter on the layer, so a deep copy has its own."""
    adapter: Variant = getattr(layer, CHILD)
    return (adapter.before(layer, _input(args, kwargs)),), {}


def _after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
    """Forward hook."""
    adapter: Variant = getattr(layer, CHILD)
    return adapter.after(layer, _input(args, kwargs), y)


def adapters(model: nn.Module) -> dict[str, Variant]:
    """Layer name -> adapter, for every adapted layer in ``model``."""
    return {name: getattr(layer, CHILD) for name, layer in _adapted(model).items()}


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The adapters' trainable parameters: what to give the optimizer."""
    for adapter in adapters(model).values():
        yield from adapter.parameters()


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m._modules.get(CHILD), Variant)}


def attach(model: nn.Module, config: AdapterConfig) -> dict[str, Variant]:
    """Put a fresh adapter on every layer that ``config`` selects, and freeze everything else in ``model``.

    Returns layer name -> adapter ("" for a model that is itself the layer). Raises ValueError, and leaves the
    model as it was, if no layer matches, one already has an adapter, or one cannot carry this variant.
    """
    chosen = {}
    for name, layer in find_targets(model, config).items():
        chosen[name] = make(name, layer, config, _options(model, name, config))
    for name, adapter in chosen.items():
        adapter.init(model.get_submodule(name))
    install(model, chosen)
    return chosen


def _options(model: nn.Module, name: str, config: AdapterConfig) -> dict[str, Any]:
    """What holds for one layer: for (IA)³, which side is gated."""
    if not isinstance(config, IA3Config):
        return {}
    side = config.feedforward
    if side is None:
        side = default_feedforward(model_type(model))
    return {"feedforward": side if isinstance(side, bool) else matches(name, side)}


def make(name: str, layer: nn.Module, config: AdapterConfig, options: dict[str, Any]) -> Variant:
    """An uninitialised adapter for one layer, not yet on it. Raises ValueError, naming the layer."""
    try:
        _check_free(layer)
        return variant_of(config)(layer, config, options)
    except ValueError as error:
        raise ValueError(f"cannot adapt {described(name)}: {error}") from None


def _check_free(layer: nn.Module) -> None:
    """Raises ValueError if the layer has an adapter, is never called, or has no shape yet."""
    if CHILD in layer._modules:
        has = type(getattr(layer, CHILD)).__name__
        raise ValueError(f"it already has a {has} adapter; detach or merge it first")
    if isinstance(layer.weight, UninitializedParameter):
        raise ValueError("it is lazy and has no shape yet; call the model once first")
    if never_called(layer):
        raise ValueError("nn.MultiheadAttention reads its weight and never calls it, so no hook would run")


def install(model: nn.Module, chosen: dict[str, Variant]) -> None:
    """Freeze the model, then put the adapters on their layers."""
    _freeze(model)
    for name, adapter in chosen.items():
        layer = model.get_submodule(name)
        adapter.install(layer)
        layer.add_module(CHILD, adapter)
        handles = (
            layer.register_forward_pre_hook(_before, with_kwargs=True),
            layer.register_forward_hook(_after, with_kwargs=True),
        )
        setattr(layer, HANDLES, handles)


def _freeze(model: nn.Module) -> None:
    """Freeze every parameter outside adapters; each module remembers which of its own were trainable."""
    skip = {id(module) for adapter in adapters(model).values() for module in adapter.modules()}
    for module in model.modules():
        own = [] if id(module) in skip else list(module.named_parameters(recurse=False))
        trainable = tuple(name for name, p in own if p.requires_grad)
        for name in trainable:
            getattr(module, name).requires_grad_(False)
        if trainable:
            setattr(module, FROZEN, (*getattr(module, FROZEN, ()), *trainable))


def _unfreeze(model: nn.Module) -> None:
    """Undo :func:`_freeze` for ``model`` and all within."""
    for module in model.modules():
        for name in module.__dict__.pop(FROZEN, ()):
            getattr(module, name).requires_grad_(True)


def _take_off(layer: nn.Module) -> Variant:
    """Remove hooks and adapter from one layer; its weight is left to the caller."""
    for handle in layer.__dict__.pop(HANDLES):
        handle.remove()
    adapter: Variant = getattr(layer, CHILD)
    delattr(layer, CHILD)
    return adapter


def _require_adapted(model: nn.Module) -> dict[str, nn.Module]:
    found = _adapted(model)
    if not found:
        raise ValueError(f"this {type(model).__name__} has no lora_lite adapter; attach one first")
    return found


def detach(model: nn.Module) -> nn.Module:
    """Take every adapter off: weights bit for bit as before :func:`attach`, ``requires_grad`` too."""
    for layer in _require_adapted(model).values():
        _take_off(layer).remove(layer)
    _unfreeze(model)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's weight and bias; what is left are plain layers.

    Computed in fp32 (fp64 for an fp64 base) and rounded once. Raises ValueError, and changes nothing, if a
    weight is quantised or on the meta device.
    """
    found = _require_adapted(model)
    for name, layer in found.items():
        if problem := weight_problem(layer):
            raise ValueError(f"cannot merge into {described(name)}: {problem}")
    for layer in found.values():
        _fold(layer)
    _unfreeze(model)
    return model


@torch.no_grad()
def _fold(layer: nn.Module) -> None:
    W, bias = widened(weight_of(layer)), bias_of(layer)
    W, b = _take_off(layer).to(W.dtype).merged(W, None if bias is None else bias.to(W.dtype))
    # New parameters, not writes: a weight tied to another module is not this layer's alone.
    _set(layer, "weight", in_layout(layer, W))
    if b is not None:
        _set(layer, "bias", b)


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    old: Tensor = getattr(layer, name)
    setattr(layer, name, nn.Parameter(value.to(old.dtype), requires_grad=False))


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write the adapters of ``model`` to one safetensors file, complete or not at all.

    Raises ValueError if the model has no adapter, or adapters of different configurations.
    """
    found = _require_adapted(model)
    configs = {adapter.config for adapter in adapters(model).values()}
    if len(configs) > 1:
        raise ValueError(f"one file holds adapters of one configuration, the model has {len(configs)}")
    entries = {}
    for name, layer in found.items():
        adapter: Variant = getattr(layer, CHILD)
        entries[name] = checkpoint.Entry(adapter.state(layer), adapter.options, adapter.fingerprint(layer))
    checkpoint.write(path, configs.pop(), entries)


def load(model: nn.Module, path: str | PathLike[str]) -> dict[str, Variant]:
    """Attach the adapters that :func:`save` wrote; the result is as :func:`attach`'s.

    Everything is checked before anything is changed: a file that is damaged, incomplete, not safetensors or
    made for other layers raises ValueError and leaves the model as it was. Nothing is ever unpickled.
    """
    config, entries = checkpoint.read(path)
    chosen = {}
    for name, entry in entries.items():
        layer = checkpoint.layer_for(model, name)
        adapter = make(name, layer, config, entry.options)
        checkpoint.check(name, entry, adapter, layer)
        chosen[name] = adapter
    for name, adapter in chosen.items():
        adapter.restore(model.get_submodule(name), entries[name].tensors)
    install(model, chosen)
    return chosen

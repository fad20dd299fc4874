"""attach, detach, set_adapters, save, load: adapters sit on layers as forward hooks, nothing is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

from torch import nn

from . import checkpoint
from .config import AdapterConfig, IA3Config
from .kinds import is_lazy, never_called
from .switch import DEFAULT, STATE, adapted_layers, child, named, rest, resume, state_of, suspend, work
from .target import default_feedforward, find_targets, matches, model_type, pattern_value
from .variant import Variant, described, variant_of

__all__ = [
    "active",
    "adapters",
    "attach",
    "delete",
    "detach",
    "disabled",
    "load",
    "names",
    "parameters",
    "save",
    "set_adapters",
]

FROZEN = "_lora_lite_frozen"  # a module's own parameters that attach froze


def adapters(model: nn.Module, name: str = DEFAULT) -> dict[str, Variant]:
    """Layer name -> adapter, for every layer in ``model`` that has an adapter of that name."""
    found = {layer: named(module).get(name) for layer, module in adapted_layers(model).items()}
    return {layer: adapter for layer, adapter in found.items() if adapter is not None}


def names(model: nn.Module) -> tuple[str, ...]:
    """The names of the model's adapters, in the order of their layers."""
    return tuple(dict.fromkeys(n for layer in adapted_layers(model).values() for n in named(layer)))


def active(model: nn.Module) -> tuple[str, ...]:
    """The names of those that are active."""
    return tuple(dict.fromkeys(n for layer in adapted_layers(model).values() for n in state_of(layer).active))


def parameters(model: nn.Module, name: str | None = None) -> Iterator[nn.Parameter]:
    """The adapters' parameters, or one adapter's: what to give the optimizer."""
    for layer in adapted_layers(model).values():
        for own, adapter in named(layer).items():
            if name is None or own == name:
                yield from adapter.parameters()


def attach(model: nn.Module, config: AdapterConfig, name: str = DEFAULT) -> dict[str, Variant]:
    """Put a fresh adapter on every layer that ``config`` selects, and freeze everything else in ``model``.

    Returns layer name -> adapter ("" for a model that is itself the layer). A model's first adapter is active, a
    further ``name`` acts after :func:`set_adapters`. Raises ValueError, and leaves the model as it was, if no
    layer matches, one already has an adapter of that name, or one cannot carry this variant.
    """
    variant = variant_of(config)
    chosen = {}
    for path, layer in find_targets(model, config, variant.kinds).items():
        chosen[path] = make(path, layer, config, layer_options(model, path, config), name)
    check_together(model, chosen, name)
    for path, adapter in chosen.items():
        adapter.init(model.get_submodule(path))
    install(model, chosen, name)
    return chosen


def layer_options(model: nn.Module, path: str, config: AdapterConfig) -> dict[str, Any]:
    """What holds for one layer: which side (IA)³ gates, and the values that a pattern gives it."""
    options = {
        field: value for field in config.patterns if (value := pattern_value(path, config, field)) is not None
    }
    if isinstance(config, IA3Config):
        side = config.feedforward
        if side is None:
            side = default_feedforward(model_type(model))
        options["feedforward"] = side if isinstance(side, bool) else matches(path, side)
    return options


def make(
    path: str, layer: nn.Module, config: AdapterConfig, options: dict[str, Any], name: str = DEFAULT
) -> Variant:
    """An uninitialised adapter for one layer, not yet on it. Raises ValueError, naming the layer."""
    try:
        _check_free(layer, name)
        return variant_of(config)(layer, config, options)
    except ValueError as error:
        raise ValueError(f"cannot adapt {described(path)}: {error}") from None


def _check_free(layer: nn.Module, name: str) -> None:
    """Raises ValueError if the layer has an adapter of that name, is never called, or has no shape yet."""
    has = layer._modules.get(child(name))
    if isinstance(has, Variant):
        called = "" if name == DEFAULT else f" called {name!r}"
        raise ValueError(f"it already has a {type(has).__name__} adapter{called}; detach or merge it first")
    if has is not None or hasattr(layer, child(name)):
        raise ValueError(f"an adapter called {name!r} would take the place of its own {child(name)!r}")
    if is_lazy(layer):
        raise ValueError("it is lazy and has no shape yet; call the model once first")
    if never_called(layer):
        raise ValueError("nn.MultiheadAttention reads its weight and never calls it, so no hook would run")


def becomes_active(model: nn.Module, name: str) -> bool:
    """Whether a new adapter of that name acts at once: the model's first one, or more layers of an active one."""
    return not adapted_layers(model) or name in active(model)


def check_together(model: nn.Module, chosen: dict[str, Variant], name: str) -> None:
    """Raises ValueError if a new adapter would be active beside one that it cannot act with."""
    for path, adapter in chosen.items() if becomes_active(model, name) else ():
        layer = model.get_submodule(path)
        if STATE in layer.__dict__:
            _check_conflicts(path, {**named(layer), name: adapter}, (*state_of(layer).active, name))


def _check_conflicts(path: str, adapters: dict[str, Variant], together: Sequence[str]) -> None:
    for i, first in enumerate(together):
        for second in together[i + 1 :]:
            if problem := adapters[first].conflict(adapters[second]):
                both = f"{first!r} and {second!r}"
                raise ValueError(f"adapters {both} cannot be active together on {described(path)}: {problem}")


def install(model: nn.Module, chosen: dict[str, Variant], name: str) -> None:
    """Freeze the model, then put the adapters on their layers; :func:`check_together` comes first."""
    acts = becomes_active(model, name)
    _freeze(model)
    for path, adapter in chosen.items():
        layer = model.get_submodule(path)
        layer.add_module(child(name), adapter)
        state = state_of(layer)
        if acts and not state.merged:
            rest(layer)
            work(layer, (*state.active, name))
        else:
            adapter.requires_grad_(False)


def _freeze(model: nn.Module) -> None:
    """Freeze every parameter outside adapters; each module remembers which of its own were trainable."""
    skip = {
        id(module)
        for layer in adapted_layers(model).values()
        for adapter in named(layer).values()
        for module in adapter.modules()
    }
    for module in model.modules():
        own = [] if id(module) in skip else list(module.named_parameters(recurse=False))
        trainable = tuple(name for name, p in own if p.requires_grad)
        for name in trainable:
            getattr(module, name).requires_grad_(False)
        if trainable:
            setattr(module, FROZEN, (*getattr(module, FROZEN, ()), *trainable))


def unfreeze(model: nn.Module) -> None:
    """Undo the freezing of ``model`` and all within."""
    for module in model.modules():
        for name in module.__dict__.pop(FROZEN, ()):
            getattr(module, name).requires_grad_(True)


def set_adapters(model: nn.Module, names: str | Sequence[str]) -> None:
    """Let the adapters of these names act, and no other; none of them: the base answers.

    Several on one layer act together, in the order given: LoRA, PiSSA, DoRA and DeLoRA add what each changes of
    the base, (IA)³ multiplies, HRA chains, W H_a H_b for ``["a", "b"]``. Inactive ones are frozen. A model that is
    merged in place is unmerged first. Raises ValueError, and changes nothing, for an unknown name, one that is
    given twice, or two that cannot act together.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    layers = require_adapted(model)
    _check_names(model, wanted)
    for path, layer in layers.items():
        _check_conflicts(path, named(layer), [n for n in wanted if n in named(layer)])
    for layer in layers.values():
        _set_layer(layer, tuple(n for n in wanted if n in named(layer)))


def _check_names(model: nn.Module, wanted: tuple[str, ...]) -> None:
    known = names(model)
    if unknown := [n for n in wanted if n not in known]:
        raise ValueError(f"there is no adapter {unknown[0]!r}; the model has {', '.join(map(repr, known))}")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"each adapter can be named once, got {list(wanted)}")


def _set_layer(layer: nn.Module, wanted: tuple[str, ...]) -> None:
    state = state_of(layer)
    if wanted == state.active and not state.merged:
        return
    for name, adapter in named(layer).items():
        if (name in wanted) != (name in state.active):
            adapter.requires_grad_(name in wanted)
    rest(layer)
    work(layer, wanted)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """A block in which the base answers, merged in place or not; after it, what was active is active again."""
    before = [(layer, suspend(layer)) for layer in require_adapted(model).values()]
    try:
        yield model
    finally:
        for layer, kept in before:
            resume(layer, kept)


def delete(model: nn.Module, name: str) -> None:
    """Take one adapter off every layer that has it; the others stay, active or not as they were.

    Layers into which it is merged are unmerged. With the model's last adapter gone, all is as before
    :func:`attach`. Raises ValueError for an unknown name.
    """
    require_adapted(model)
    _check_names(model, (name,))
    for layer in adapted_layers(model).values():
        if name in named(layer):
            _delete(layer, name)
    if not adapted_layers(model):
        unfreeze(model)


def _delete(layer: nn.Module, name: str) -> None:
    state = state_of(layer)
    acted = name in state.active
    if acted:
        rest(layer)
    delattr(layer, child(name))
    if not named(layer):
        del layer.__dict__[STATE]
    elif acted:
        work(layer, tuple(n for n in state.active if n != name))


def strip(layer: nn.Module) -> None:
    """Take every adapter off one layer, its own weight in its place."""
    rest(layer)
    for name in named(layer):
        delattr(layer, child(name))
    del layer.__dict__[STATE]


def require_adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer. Raises ValueError if there is none."""
    found = adapted_layers(model)
    if not found:
        raise ValueError(f"this {type(model).__name__} has no lora_lite adapter; attach one first")
    return found


def require_named(model: nn.Module, name: str) -> dict[str, Variant]:
    """Layer name -> adapter. Raises ValueError if no layer has one of that name."""
    require_adapted(model)
    _check_names(model, (name,))
    return adapters(model, name)


def detach(model: nn.Module) -> nn.Module:
    """Take every adapter off: weights bit for bit as before :func:`attach`, ``requires_grad`` too."""
    for layer in require_adapted(model).values():
        strip(layer)
    unfreeze(model)
    return model


def save(model: nn.Module, path: str | PathLike[str], name: str = DEFAULT) -> None:
    """Write one adapter of ``model``, active, merged or neither, to a safetensors file, complete or not at all.

    Raises ValueError if the model has no adapter of that name, or one of different configurations.
    """
    found = require_named(model, name)
    configs = {adapter.config for adapter in found.values()}
    if len(configs) > 1:
        raise ValueError(f"one file holds adapters of one configuration, the model has {len(configs)}")
    entries = {}
    for layer_name, adapter in found.items():
        layer = model.get_submodule(layer_name)
        entries[layer_name] = checkpoint.Entry(
            adapter.state(layer), adapter.options, adapter.fingerprint(layer)
        )
    checkpoint.write(path, configs.pop(), entries)


def load(
    model: nn.Module, path: str | PathLike[str], name: str = DEFAULT, config: AdapterConfig | None = None
) -> dict[str, Variant]:
    """Attach the adapter that :func:`save` wrote; the result is as :func:`attach`'s.

    Rank, alpha and all else are the file's; with ``config``, a file that says otherwise is refused (which layers
    it adapts is not compared). Everything is checked before anything is changed: a file that is damaged,
    incomplete, not safetensors or made for other layers raises ValueError and leaves the model as it was. Nothing
    is ever unpickled.
    """
    found, entries = checkpoint.read(path)
    chosen = {}
    for layer_name, entry in entries.items():
        layer = checkpoint.layer_for(model, layer_name)
        adapter = make(layer_name, layer, found, entry.options, name)
        checkpoint.check(layer_name, entry, adapter, layer)
        chosen[layer_name] = adapter
    put_on(model, chosen, entries, name, config)
    return chosen


def put_on(
    model: nn.Module,
    chosen: dict[str, Variant],
    entries: dict[str, checkpoint.Entry],
    name: str,
    config: AdapterConfig | None,
) -> None:
    """The end of every load: the last checks, the tensors, the hooks."""
    for layer_name, adapter in chosen.items() if config is not None else ():
        wanted = layer_options(model, layer_name, config)  # type: ignore[arg-type]
        checkpoint.check_config(layer_name, adapter, config, wanted)  # type: ignore[arg-type]
    check_together(model, chosen, name)
    for layer_name, adapter in chosen.items():
        adapter.restore(model.get_submodule(layer_name), entries[layer_name].tensors)
    install(model, chosen, name)

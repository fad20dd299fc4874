"""The default subject: our own lora_lite behind the audit's interface."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import lora_lite
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

__all__ = ["LoraLite"]

CONFIGS: dict[str, Callable[[AdapterSpec], dict[str, Any]]] = {
    "lora": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout, "rslora": s.rslora},
    "pissa": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout, "rslora": s.rslora},
    "dora": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout, "rslora": s.rslora},
    "ia3": lambda s: {"feedforward": s.feedforward},
    "hra": lambda s: {"rank": s.rank, "gram_schmidt": s.gram_schmidt},
    "delora": lambda s: {"rank": s.rank, "lambda0": s.lambda0, "dropout": s.dropout},
}

# aspect -> the method that implements it; "forward" is `after` but where a variant changes the input
SYMBOLS = {
    "shapes": "build",
    "init": "init",
    "scale": "scale",
    "forward": "after",
    "dropout": "dropped",
    "merge": "merged",
    "save_load": "state",
}


class LoraLite(Implementation):
    """lora_lite, driven through its public functions."""

    name = "lora_lite"
    version = lora_lite.__version__
    variants = frozenset(CONFIGS)
    layers = frozenset({"linear", "conv1d", "embedding", "conv2d", "quantised"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return self._attach(base, spec, lora_lite.DEFAULT)

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        return self._attach(adapted.module, spec, name)

    def _attach(self, layer: nn.Module, spec: AdapterSpec, name: str) -> Adapted:
        lora_lite.attach(layer, config_for(spec, layer), name)
        return adapted(layer, name)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        lora_lite.set_adapters(adapted.module, names)

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        lora_lite.delete(adapted.module, name)

    def save(self, adapted: Adapted, path: Path) -> None:
        lora_lite.save(adapted.module, path, name_of(adapted))

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        read = lora_lite.load_peft if path.is_dir() else lora_lite.load
        read(base, path, config=described(spec))
        return adapted(base)

    def merge(self, adapted: Adapted) -> nn.Linear:
        return plain(
            lora_lite.merge(copy.deepcopy(adapted.module))
        )  # the library's own folds the layer itself

    def merge_in_place(self, adapted: Adapted) -> None:
        lora_lite.merge_in_place(adapted.module)

    def unmerge(self, adapted: Adapted) -> None:
        lora_lite.unmerge(adapted.module)

    def detach(self, adapted: Adapted) -> nn.Linear:
        return plain(lora_lite.detach(adapted.module))

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        return all_adapted(model, lora_lite.attach(model, config(spec, targets=targets)))

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        return all_adapted(model, lora_lite.load_peft(model, folder))

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        lora_lite.save_peft(model, folder)

    def merge_model(self, model: nn.Module) -> nn.Module:
        return lora_lite.merge(model)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        if aspect == "targets":
            return locate(lora_lite.target.find_targets)
        method = "before" if (variant, aspect) == ("hra", "forward") else SYMBOLS.get(aspect, "")
        return locate_method(lora_lite.VARIANTS[variant], method)


def config(
    spec: AdapterSpec,
    in_features: int | None = None,
    out_features: int | None = None,
    targets: Sequence[str] | None = None,
) -> lora_lite.AdapterConfig:
    """The library's config for a fresh adapter. Raises Unsupported for the specs that it refuses by design."""
    refuse(spec, in_features, out_features)
    whole = in_features is None and targets is None
    return described(spec, targets, drop=("feedforward",) if whole else ())


def described(
    spec: AdapterSpec, targets: Sequence[str] | None = None, drop: Sequence[str] = ()
) -> lora_lite.AdapterConfig:
    """The library's config for any spec; ``drop``: what the architecture decides.

    Raises Unsupported for an option that the library does not know.
    """
    values = {**CONFIGS[spec.variant](spec), **spec.options}
    known = {field.name for field in dataclasses.fields(lora_lite.VARIANTS[spec.variant].Config)}
    if unknown := sorted(set(values) - known):
        raise Unsupported(f"lora_lite's {spec.variant} has no option {unknown[0]!r}")
    values = {name: value for name, value in values.items() if name not in drop}
    if targets is not None:
        values["targets"] = tuple(targets)
    return lora_lite.config_from_dict({"variant": spec.variant, **values})


def config_for(spec: AdapterSpec, layer: nn.Module) -> lora_lite.AdapterConfig:
    """The config for a fresh adapter on one layer of any kind. Raises Unsupported for what is refused by design."""
    kind = lora_lite.kind_of(layer)
    if kind is None:
        raise Unsupported(f"lora_lite adapts no {type(layer).__name__}")
    refuse_kind(spec, kind, layer)
    out_features, in_features = kind.features(layer)
    return config(spec, in_features, out_features)


def refuse(spec: AdapterSpec, in_features: int | None, out_features: int | None) -> None:
    """Raises Unsupported for the ranks that the library documents as refused (everything else must work)."""
    least = min(in_features or spec.rank, out_features or spec.rank)
    if spec.variant == "pissa" and spec.rank > least:
        raise Unsupported(f"PiSSA with rank {spec.rank} above min(in, out) = {least} is refused")
    if spec.variant == "hra" and not spec.gram_schmidt and spec.rank % 2:
        raise Unsupported(f"HRA with the odd rank {spec.rank} is refused: it would not start at the identity")
    if spec.variant == "hra" and spec.gram_schmidt and spec.rank > (in_features or spec.rank):
        raise Unsupported(f"HRA's Gram-Schmidt mode: rank {spec.rank} above in = {in_features} is refused")


def refuse_kind(spec: AdapterSpec, kind: lora_lite.Kind, layer: nn.Module) -> None:
    """Raises Unsupported for a kind of layer that the variant does not take."""
    cls = lora_lite.VARIANTS[spec.variant]
    if kind.name not in cls.kinds:
        raise Unsupported(f"lora_lite's {spec.variant} takes {', '.join(cls.kinds)} layers, not {kind.name}")
    if not cls.takes_quantised and lora_lite.is_quantised(layer):
        raise Unsupported(f"lora_lite's {spec.variant} needs a weight that is not quantised")
    groups = getattr(layer, "groups", 1)
    if spec.rank % groups:
        raise Unsupported(f"a convolution with groups={groups} needs a rank that it divides, not {spec.rank}")
    if spec.variant == "dora" and (problem := kind.merge_problem(layer)):
        raise Unsupported(f"DoRA: {problem}")


def adapted(layer: nn.Module, name: str = lora_lite.DEFAULT) -> Adapted:
    """The live tensors of an adapter on ``layer`` under their canonical names."""
    adapter = lora_lite.adapters(layer, name)[""]
    slots = {key.rstrip("_"): Slot(tensor) for key, tensor in tensors(adapter).items()}
    if isinstance(adapter, lora_lite.variants.PiSSA):
        slots["W"] = Slot(cast(Tensor, layer.weight), adapter.kind.matrix)
    return Adapted(layer, slots)


def all_adapted(model: nn.Module, names: Mapping[str, Any]) -> dict[str, Adapted]:
    """Module name -> adapted layer."""
    return {name: adapted(model.get_submodule(name)) for name in names}


def name_of(handle: Adapted) -> str:
    """Which of the layer's adapters a handle is: the one that has its tensors."""
    found = {id(slot.tensor) for slot in handle.slots.values()}
    for name in lora_lite.names(handle.module):
        if any(id(p) in found for p in lora_lite.parameters(handle.module, name)):
            return name
    return lora_lite.DEFAULT


def tensors(adapter: lora_lite.Variant) -> dict[str, Tensor]:
    """Parameters and persistent buffers, live (``state_dict`` would detach them)."""
    live: dict[str, Tensor] = {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}
    return {name: live[name] for name in adapter.state_dict()}


def plain(layer: nn.Module) -> nn.Linear:
    """The layer, now without an adapter (in a whole model it may be a ``Conv1D``)."""
    return cast(nn.Linear, layer)


def locate(symbol: Any) -> tuple[Path, str]:
    """File and qualified name of a function or method."""
    return Path(inspect.getfile(symbol)), symbol.__qualname__


def locate_method(cls: type, method: str) -> tuple[Path, str] | None:
    """Where ``method`` is defined along the class's bases."""
    for base in cls.__mro__:
        if method in vars(base):
            return Path(inspect.getfile(base)), f"{base.__qualname__}.{method}"
    return None

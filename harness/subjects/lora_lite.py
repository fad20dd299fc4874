"""The default subject: our own lora_lite behind the audit's interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import lora_lite
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

__all__ = ["LoraLite"]

CONFIGS: dict[str, Callable[[AdapterSpec], dict[str, Any]]] = {
    "lora": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout},
    "pissa": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout},
    "dora": lambda s: {"rank": s.rank, "alpha": s.alpha, "dropout": s.dropout},
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

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        lora_lite.attach(base, config(spec, base.in_features, base.out_features))
        return adapted(base)

    def save(self, adapted: Adapted, path: Path) -> None:
        lora_lite.save(adapted.module, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        if path.is_dir():
            lora_lite.load_peft(base, path)
        else:
            lora_lite.load(base, path)
        return adapted(base)

    def merge(self, adapted: Adapted) -> nn.Linear:
        return plain(lora_lite.merge(adapted.module))

    def detach(self, adapted: Adapted) -> nn.Linear:
        return plain(lora_lite.detach(adapted.module))

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        names = lora_lite.attach(model, config(spec, targets=targets))
        return {name: adapted(model.get_submodule(name)) for name in names}

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
    """The library's config for a spec. Raises Unsupported for the specs that it refuses by design."""
    refuse(spec, in_features, out_features)
    values = CONFIGS[spec.variant](spec)
    if targets is not None:
        values["targets"] = tuple(targets)
    elif in_features is None:  # a whole model: the architecture's default layers, on their default sides
        values.pop("feedforward", None)
    return lora_lite.config_from_dict({"variant": spec.variant, **values})


def refuse(spec: AdapterSpec, in_features: int | None, out_features: int | None) -> None:
    """Raises Unsupported for the ranks that the library documents as refused (everything else must work)."""
    least = min(in_features or spec.rank, out_features or spec.rank)
    if spec.variant == "pissa" and spec.rank > least:
        raise Unsupported(f"PiSSA with rank {spec.rank} above min(in, out) = {least} is refused")
    if spec.variant == "hra" and not spec.gram_schmidt and spec.rank % 2:
        raise Unsupported(f"HRA with the odd rank {spec.rank} is refused: it would not start at the identity")
    if spec.variant == "hra" and spec.gram_schmidt and spec.rank > (in_features or spec.rank):
        raise Unsupported(f"HRA's Gram-Schmidt mode: rank {spec.rank} above in = {in_features} is refused")


def adapted(layer: nn.Module) -> Adapted:
    """The live tensors of the adapter on ``layer`` under their canonical names."""
    adapter = lora_lite.adapters(layer)[""]
    slots = {name.rstrip("_"): Slot(tensor) for name, tensor in tensors(adapter).items()}
    if isinstance(adapter, lora_lite.variants.PiSSA):
        slots["W"] = Slot(cast(Tensor, layer.weight))
    return Adapted(layer, slots)


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

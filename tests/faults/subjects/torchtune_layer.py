"""One of torchtune's LoRA or DoRA layers, driven as its single-device recipe drives a model of them."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import peft

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

LAYERS = {"lora": peft.LoRALinear, "dora": getattr(peft, "DoRALinear", None)}
PATHS = {"A": "lora_a.weight", "B": "lora_b.weight", "m": "magnitude"}


class OneLayer(nn.Module):
    """A model that is its output projection alone: torchtune's functions act on models and on their state dicts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.output = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.output(x)
        return found


class Torchtune(Implementation):
    """The torchtune that is installed here."""

    name = "torchtune"
    version = version("torchtune")
    variants = frozenset(v for v, kind in LAYERS.items() if kind is not None)

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Trainable parameters, then the base's weights, then DoRA's magnitude, in the recipe's order."""
        kind: Any = LAYERS[spec.variant]
        sizes = (base.in_features, base.out_features, spec.rank, spec.alpha, spec.dropout)
        model = OneLayer(kind(*sizes, base.bias is not None)).to(base.weight.dtype)
        peft.set_trainable_params(model, peft.get_adapter_params(model))
        model.load_state_dict({f"output.{name}": t for name, t in base.state_dict().items()}, strict=False)
        if hasattr(model.output, "initialize_dora_magnitude"):
            model.output.initialize_dora_magnitude()
        model.train(base.training)
        own = dict(model.output.named_parameters())
        return Adapted(model, {name: Slot(own[path]) for name, path in PATHS.items() if path in own})

    def save(self, adapted: Adapted, path: Path) -> None:
        """``get_adapter_state_dict``, or the function that an earlier release has for it."""
        state = adapted.module.state_dict()
        if hasattr(peft, "get_adapter_state_dict"):
            torch.save(peft.get_adapter_state_dict(state), path)
        else:
            own = peft.get_adapter_params(adapted.module)
            torch.save({name: t for name, t in state.items() if name in own}, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """The adapter's part into a fresh layer, and the recipe's look at what was missing from the file."""
        adapted = self.adapt(base, spec)
        missing, unexpected = adapted.module.load_state_dict(torch.load(path), strict=False)
        peft.validate_missing_and_unexpected_for_lora(
            [], False, True, lora_missing=missing, lora_unexpected=unexpected
        )
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``get_merged_lora_ckpt`` of a copy of the state dict, in a plain layer."""
        layer: Any = adapted.module.output
        rank = layer.lora_a.out_features
        alpha = getattr(layer, "alpha", None) or layer.scaling * rank
        state = {name: tensor.clone() for name, tensor in adapted.module.state_dict().items()}
        merged = peft.get_merged_lora_ckpt(state, rank=rank, alpha=alpha)
        plain = nn.Linear(layer.in_dim, layer.out_dim, "output.bias" in merged).to(
            merged["output.weight"].dtype
        )
        plain.load_state_dict({name.removeprefix("output."): tensor for name, tensor in merged.items()})
        return plain

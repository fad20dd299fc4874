# /// script
# requires-python = "==3.11.*"
# dependencies = ["torchtune==0.6.1", "torchao==0.9.0", "torch==2.13.0", "numpy"]
# ///
"""torchtune's LoRA and DoRA layers, driven as its single-device LoRA recipe drives them."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules import peft

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

LAYERS = {"lora": peft.LoRALinear, "dora": peft.DoRALinear}
NAMES = {"A": "lora_a.weight", "B": "lora_b.weight", "m": "magnitude"}


class OneLayer(nn.Module):
    """A model that is one layer: torchtune saves and merges the state dicts of models."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        bias = base.bias is not None
        kind: Any = LAYERS[spec.variant]
        self.layer = kind(base.in_features, base.out_features, spec.rank, spec.alpha, spec.dropout, bias)
        self.to(base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Torchtune(Implementation):
    """torchtune's layers. It has no rsLoRA; which of a model's layers are adapted, its model builders know."""

    name = "torchtune"
    version = version("torchtune")
    variants = frozenset(LAYERS)

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """As the recipe's ``_setup_model``: trainable parameters, base weights, DoRA's magnitude."""
        model = OneLayer(base, spec)
        peft.set_trainable_params(model, peft.get_adapter_params(model))
        model.load_state_dict({f"layer.{n}": t for n, t in base.state_dict().items()}, strict=False)
        if spec.variant == "dora":
            model.layer.initialize_dora_magnitude()
        return _adapted(model.train(base.training), spec)

    def save(self, adapted: Adapted, path: Path) -> None:
        """The adapter's part of the state dict, written as torchtune's own checkpointer writes it."""
        torch.save(peft.get_adapter_state_dict(adapted.module.state_dict()), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """As the recipe loads, which validates names by the modules that its model builders know, and not this one."""
        adapted = self.adapt(base, spec)
        adapted.module.load_state_dict(torch.load(path), strict=False)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``get_merged_lora_ckpt`` of a copy of the state dict, in a plain layer."""
        model: Any = adapted.module
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        rank = model.layer.lora_a.out_features
        alpha = getattr(model.layer, "alpha", None) or model.layer.scaling * rank
        merged = peft.get_merged_lora_ckpt(state, rank=rank, alpha=alpha)
        plain = nn.Linear(model.layer.in_dim, model.layer.out_dim, "layer.bias" in merged)
        plain.to(merged["layer.weight"].dtype)
        plain.load_state_dict({name.removeprefix("layer."): tensor for name, tensor in merged.items()})
        return plain

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        kind = LAYERS[variant]
        start = "initialize_dora_magnitude" if variant == "dora" else "initialize_parameters"
        methods = {"shapes": "__init__", "init": start, "scale": "forward", "forward": "forward",
                   "dropout": "forward"}  # fmt: skip
        functions = {"merge": peft.get_merged_lora_ckpt, "save_load": peft.get_adapter_state_dict}
        if aspect in functions:
            return Path(inspect.getfile(inspect.unwrap(functions[aspect]))), functions[aspect].__name__
        return (
            (Path(inspect.getfile(kind)), f"{kind.__name__}.{methods[aspect]}") if aspect in methods else None
        )


def _adapted(model: Any, spec: AdapterSpec) -> Adapted:
    own = dict(model.layer.named_parameters())
    return Adapted(model, {name: Slot(own[path]) for name, path in NAMES.items() if path in own})

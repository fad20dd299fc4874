# /// script
# requires-python = "==3.11.*"
# dependencies = ["block-streamer==0.2.0", "torch==2.13.0", "numpy"]
# ///
"""block-streamer's LoRA over base weights that it streams from disk; here they are simply there."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import version
from pathlib import Path

import torch
from block_streamer import lora
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot


class OneLayer(nn.Module):
    """A block that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class BlockStreamer(Implementation):
    """block-streamer's LoRALinear. It has no rsLoRA and does not merge."""

    name = "block-streamer"
    version = version("block-streamer")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``inject``, the base's tensors where its pool would put them, and ``freeze_base``."""
        model, weights, training = OneLayer(base), base.state_dict(), base.training
        lora.inject(model, lora.LoRAConfig(spec.rank, spec.alpha, spec.dropout, targets=("layer",)))
        model.layer.load_state_dict(weights, strict=False)
        lora.freeze_base(model)
        slots = {"A": Slot(model.layer.lora_A), "B": Slot(model.layer.lora_B)}  # type: ignore[arg-type]
        return Adapted(model.train(training), slots)

    def save(self, adapted: Adapted, path: Path) -> None:
        """``adapter_state``: "what a LoRA checkpoint needs to save"."""
        torch.save(lora.adapter_state(adapted.module), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = self.adapt(base, spec)
        adapted.module.load_state_dict(torch.load(path), strict=False)
        return adapted

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "reset_adapters", "scale": "forward", "forward": "forward",
                   "dropout": "forward"}  # fmt: skip
        functions = {"save_load": "adapter_state", "targets": "inject"}
        file = Path(inspect.getfile(lora))
        if aspect in functions:
            return file, functions[aspect]
        return (file, f"LoRALinear.{methods[aspect]}") if aspect in methods else None

# /// script
# requires-python = "==3.11.*"
# dependencies = ["bidora==0.1.2", "torch==2.13.0", "numpy"]
#
# [tool.uv]
# exclude-dependencies = [
#   "accelerate", "bitsandbytes", "datasets", "peft", "pydantic", "pydantic-settings", "rich", "torchaudio",
#   "torchvision", "transformers", "trl", "typer",
# ]
# ///
"""bidora's BiDoRA layer, DoRA with the magnitude trained at a level of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

FILE = Path(str(distribution("bidora").locate_file("bidora/layers.py")))


def _module() -> Any:
    """The file alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("bidora_layers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LAYERS = _module()


class OneLayer(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class BiDoRA(Implementation):
    """bidora's BiDoRALinear: a function of the base, A, B and m. It has no rsLoRA, and saves whole models."""

    name = "bidora"
    version = version("bidora")
    variants = frozenset({"dora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The optimiser gets A, B and m; what is frozen, the package leaves to it."""
        training, model = base.training, OneLayer(base)
        LAYERS.replace_linear_with_bidora(
            model, spec.rank, spec.alpha, spec.dropout, target_modules=["layer"]
        )
        layer: Any = model.layer
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                getattr(layer, name).requires_grad_(False)
        slots = {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B), "m": Slot(layer.magnitude)}
        return Adapted(model.train(training), slots)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "reset_parameters", "scale": "get_direction_weights",
                   "forward": "get_direction_weights", "dropout": "forward"}  # fmt: skip
        if aspect == "targets":
            return FILE, "replace_linear_with_bidora"
        return (FILE, f"BiDoRALinear.{methods[aspect]}") if aspect in methods else None

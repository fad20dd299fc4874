# /// script
# requires-python = "==3.11.*"
# dependencies = ["langtune==0.1.48", "torch==2.13.0", "numpy"]
#
# [tool.uv]
# exclude-dependencies = [
#   "tqdm", "pyyaml", "scipy", "wandb", "rich", "requests", "transformers", "peft", "trl", "datasets", "accelerate",
#   "bitsandbytes",
# ]
# ///
"""Langtune's fast LoRA, with and without DoRA: ``apply_fast_lora`` replaces the layers whose names hold a target."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

FILE = Path(str(distribution("langtune").locate_file("langtune/fast_lora.py")))


def _module() -> Any:
    """The file alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("langtune_fast_lora", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["langtune_fast_lora"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LORA = _module()


class OneLayer(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Langtune(Implementation):
    """Langtune's FastLoRALinear; what it calls rsLoRA is on by default, and asked for by the spec here."""

    name = "langtune"
    version = version("langtune")
    variants = frozenset({"lora", "dora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        training, model = base.training, OneLayer(base)
        config = LORA.FastLoRAConfig(
            r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=["layer"],
            use_rslora=spec.rslora, use_dora=spec.variant == "dora",
        )  # fmt: skip
        LORA.apply_fast_lora(model, config, verbose=False)
        layer: Any = model.layer
        slots = {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)}
        if spec.variant == "dora":
            slots["m"] = Slot(layer.magnitude)
        return Adapted(model.train(training), slots)

    def save(self, adapted: Adapted, path: Path) -> None:
        """``get_lora_state_dict``."""
        torch.save(LORA.get_lora_state_dict(adapted.module), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_lora_state_dict`` on a model that was adapted anew."""
        adapted = self.adapt(base, spec)
        LORA.load_lora_state_dict(adapted.module, torch.load(path))
        return adapted

    def merge_in_place(self, adapted: Adapted) -> None:
        LORA.merge_lora_weights(adapted.module)

    def unmerge(self, adapted: Adapted) -> None:
        LORA.unmerge_lora_weights(adapted.module)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        forward = "_apply_dora" if variant == "dora" else "forward"
        methods = {"shapes": "__init__", "init": "_init_weights", "scale": "_compute_lora", "forward": forward,
                   "dropout": "_compute_lora", "merge": "merge_weights"}  # fmt: skip
        functions = {"save_load": "load_lora_state_dict", "targets": "apply_fast_lora"}
        if aspect in functions:
            return FILE, functions[aspect]
        return (FILE, f"FastLoRALinear.{methods[aspect]}") if aspect in methods else None

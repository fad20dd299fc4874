"""One of NeMo Automodel's LoRA layers, before it had DoRA."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from nemo_automodel.components._peft import lora
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot


class Automodel(Implementation):
    """``apply_lora_to_linear_modules`` with ``PeftConfig``'s defaults: A is drawn by "xavier"."""

    name = "nemo-automodel"
    version = importlib.metadata.version("nemo-automodel")
    variants = frozenset({"lora"})
    inputs = frozenset({2, 3})  # as the docstring of its forward has them

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` itself, patched in place."""
        sizes = {"dim": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout, "use_triton": False}
        config = lora.PeftConfig(target_modules=["layer"], **sizes)
        lora.apply_lora_to_linear_modules(nn.ModuleDict({"layer": base}), config)
        layer: Any = base.train(base.training)
        return Adapted(layer, {"A": Slot(layer.lora_A.weight), "B": Slot(layer.lora_B.weight)})

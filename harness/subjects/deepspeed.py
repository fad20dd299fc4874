# /// script
# requires-python = ">=3.11"
# dependencies = ["deepspeed==0.19.8", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""DeepSpeed 0.19.8: ``OptimizedLinear`` with its LoRA."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import deepspeed
import torch
from deepspeed.linear import LoRAConfig, OptimizedLinear, optimized_linear
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

SYMBOLS = {"shapes": "init_lora", "init": "init_lora", "scale": "init_lora", "forward": "forward"}


class DeepSpeed(Implementation):
    """``deepspeed.linear.OptimizedLinear``: a layer of its own, into which the base's weight is copied."""

    name = "deepspeed"
    version = deepspeed.__version__
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has neither dropout nor rsLoRA."""
        return dataclasses.replace(spec, dropout=0.0, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """An ``OptimizedLinear`` of the base's sizes and dtype that holds its weight."""
        if spec.dropout or spec.rslora:
            raise Unsupported("DeepSpeed's LoRA has neither dropout nor rsLoRA")
        if base.bias is not None:
            raise Unsupported("bias=True is not supported by LoRAOptimizedLinear")
        # A layer whose name no entry of target_mods is part of turns plain on load_state_dict; this one has no name.
        config = LoRAConfig(lora_r=spec.rank, lora_alpha=spec.alpha, target_mods=[""])
        layer = OptimizedLinear(
            base.in_features, base.out_features, lora_config=config, dtype=base.weight.dtype, device="cpu"
        )
        with torch.no_grad():
            layer.weight.copy_(base.weight)
        factors = {"A": Slot(layer.lora_weight_1.weight), "B": Slot(layer.lora_weight_2.weight)}
        return Adapted(layer.train(base.training), factors)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``LoRAOptimizedLinear``'s methods."""
        file = Path(optimized_linear.__file__)
        return (file, f"LoRAOptimizedLinear.{SYMBOLS[aspect]}") if aspect in SYMBOLS else None

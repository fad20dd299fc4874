# /// script
# requires-python = ">=3.11"
# dependencies = ["nemo-automodel==0.7.0", "torch==2.13.0", "numpy"]
# [tool.uv]
# exclude-dependencies = [
#   "datasets", "megatron-fsdp", "mistral-common", "ninja", "tiktoken", "torchdata", "flashoptim", "quack-kernels",
# ]
# ///
"""NeMo Automodel 0.7.0: LoRA and DoRA of linear layers, as its recipes apply them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_automodel.components._peft import lora
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

SYMBOLS = {"shapes": "_init_adapter", "init": "init_lora_weights", "scale": "_init_adapter", "forward": "forward",
           "dropout": "forward"}  # fmt: skip


class NemoAutomodel(Implementation):
    """``apply_lora_to_linear_modules`` with ``PeftConfig``'s defaults.

    A is drawn by ``lora_A_init="xavier"``, a normal distribution; ``dropout_position="post"``: dropout is applied
    after B, to the low-rank path's output.
    """

    name = "nemo-automodel"
    version = importlib.metadata.version("nemo-automodel")
    variants = frozenset({"lora", "dora"})
    inputs = frozenset({2, 3})  # as the docstring of its forward has them

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` itself, patched in place."""
        lora.apply_lora_to_linear_modules(nn.ModuleDict({"layer": base}), _config(spec, ["layer"]))
        return _adapted(base.train(base.training))

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """The same for a model."""
        if targets is None:
            raise Unsupported("NeMo Automodel knows no architectures: by default it takes every *_proj")
        patterns = [p for t in targets for p in (t, f"*.{t}")]
        mode = model.training
        lora.apply_lora_to_linear_modules(model, _config(spec, patterns))
        model.train(mode)
        return {n: _adapted(m) for n, m in model.named_modules() if isinstance(m, lora.LinearLoRA)}

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``LinearLoRA``'s methods."""
        if aspect == "targets":
            return Path(lora.__file__), "apply_lora_to_linear_modules"
        return (Path(lora.__file__), f"LinearLoRA.{SYMBOLS[aspect]}") if aspect in SYMBOLS else None


def _config(spec: AdapterSpec, targets: Sequence[str]) -> Any:
    if spec.rslora:
        raise Unsupported("NeMo Automodel has no rsLoRA")
    sizes = {"dim": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout}
    return lora.PeftConfig(target_modules=list(targets), use_dora=spec.variant == "dora", **sizes)


def _adapted(layer: Any) -> Adapted:
    slots = {"A": Slot(layer.lora_A.weight), "B": Slot(layer.lora_B.weight)}
    if layer.use_dora:
        slots["m"] = Slot(layer.lora_magnitude)
    return Adapted(layer, slots)

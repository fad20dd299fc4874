# /// script
# requires-python = ">=3.11"
# dependencies = ["lora-adapters==0.1.4", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""lora-adapters 0.1.4: loralib's layers made from existing ones, for whole models."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lora_adapters
import torch
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

CLASSES: dict[type, Any] = {nn.Linear: lora_adapters.LoraLinear, nn.Embedding: lora_adapters.LoraEmbedding}
SYMBOLS = {"shapes": "__init__", "init": "reset_parameters", "scale": "__init__", "forward": "forward",
           "dropout": "forward", "merge": "to_regular"}  # fmt: skip


class LoraAdapters(Implementation):
    """``LoraLinear`` and ``LoraEmbedding``, as ``apply_adapter`` puts them into a model."""

    name = "lora-adapters"
    version = importlib.metadata.version("lora-adapters")
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "embedding"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A layer in place of ``base``, as ``apply_adapter`` makes it, with only the factors trainable."""
        model = lora_adapters.apply_adapter(
            nn.ModuleDict({"layer": base}), CLASSES[type(base)], **_options(spec, type(base))
        )
        layer = lora_adapters.mark_only_lora_as_trainable(model).layer
        return _adapted(layer.train(base.training))

    def save(self, adapted: Adapted, path: Path) -> None:
        """``lora_state_dict`` with ``torch.save``, as the README has it."""
        torch.save(lora_adapters.lora_state_dict(nn.ModuleDict({"layer": adapted.module})), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_state_dict`` that is not strict, as the README has it, into a layer that is adapted."""
        adapted = self.adapt(base, spec)
        nn.ModuleDict({"layer": adapted.module}).load_state_dict(torch.load(path), strict=False)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``to_regular``."""
        layer: Any = adapted.module
        return layer.to_regular()

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``apply_adapter`` for the linear layers whose names match."""
        if targets is None:
            raise Unsupported("apply_adapter knows no architectures: without a pattern it takes every layer")
        options = _options(spec, nn.Linear)
        options["regex_pattern"] = rf"(.*\.)?({'|'.join(map(re.escape, targets))})$"
        lora_adapters.apply_adapter(model, lora_adapters.LoraLinear, **options)
        lora_adapters.mark_only_lora_as_trainable(model).train(model.training)
        return {n: _adapted(m) for n, m in model.named_modules() if getattr(m, "is_lora", False)}

    def merge_model(self, model: nn.Module) -> nn.Module:
        """``undo_lora``, in place."""
        return lora_adapters.undo_lora(model)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``LoraLinear``'s methods, and the functions for whole models."""
        folder = Path(lora_adapters.__file__).parent
        functions = {"save_load": "lora_state_dict", "targets": "apply_adapter"}
        if aspect in functions:
            return folder / "utils.py", functions[aspect]
        return (folder / "layers.py", f"LoraLinear.{SYMBOLS[aspect]}") if aspect in SYMBOLS else None


def _options(spec: AdapterSpec, kind: type) -> dict[str, Any]:
    if spec.rslora:
        raise Unsupported("lora-adapters has no rsLoRA")
    if spec.dropout and kind is nn.Embedding:
        raise Unsupported("lora-adapters' LoraEmbedding has no dropout")
    dropout = {} if kind is nn.Embedding else {"lora_dropout": spec.dropout}
    return {"rank": spec.rank, "lora_alpha": spec.alpha, **dropout}


def _adapted(layer: Any) -> Adapted:
    return Adapted(layer, {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)})

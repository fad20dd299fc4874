# /// script
# requires-python = ">=3.11"
# dependencies = ["peftml==2.0.0", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""PEFTML 2.0.0: its LoRA, put into a model by ``QLoRAOrchestrator``."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peftml.core.config import LoRAConfig
from peftml.lora import layers, orchestrator
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

SYMBOLS = {"shapes": "__init__", "init": "_reset_parameters", "scale": "__init__", "forward": "forward",
           "dropout": "forward", "merge": "merge"}  # fmt: skip


class PeftMl(Implementation):
    """``peftml.lora.LoRALinear``; its factors are float32."""

    name = "peftml"
    version = importlib.metadata.version("peftml")
    variants = frozenset({"lora"})
    dtypes = frozenset({"float32"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A model that is ``base`` alone, prepared."""
        return self._prepared(nn.ModuleDict({"layer": base}), spec, ["layer"], base.training)["layer"]

    def _prepared(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None, mode: bool
    ) -> dict[str, Adapted]:
        if spec.rslora:
            raise Unsupported("PEFTML has no rsLoRA")
        named = {} if targets is None else {"target_modules": list(targets)}
        config = LoRAConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, **named)
        whole = orchestrator.QLoRAOrchestrator(model, config)
        whole.prepare().train(mode)
        return {n: _adapted(m, whole) for n, m in model.named_modules() if isinstance(m, layers.LoRALinear)}

    def save(self, adapted: Adapted, path: Path) -> None:
        """``get_adapter_state_dict`` with ``torch.save``."""
        torch.save(_whole(adapted).get_adapter_state_dict(), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_adapter_state_dict`` of a model that is prepared afresh."""
        adapted = self.adapt(base, spec)
        _whole(adapted).load_adapter_state_dict(torch.load(path))
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge`` of a copy, whose base layer it is."""
        layer: Any = copy.deepcopy(adapted.module)
        layer.merge()
        return layer.base_layer

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge``."""
        layer: Any = adapted.module
        layer.merge()

    def unmerge(self, adapted: Adapted) -> None:
        """``unmerge``."""
        layer: Any = adapted.module
        layer.unmerge()

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``QLoRAOrchestrator.prepare``; by default the targets of its configuration."""
        return self._prepared(model, spec, targets, model.training)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``LoRALinear``'s methods and the orchestrator's."""
        whole = {"save_load": "get_adapter_state_dict", "targets": "_inject_adapters"}
        if aspect in whole:
            return Path(orchestrator.__file__), f"QLoRAOrchestrator.{whole[aspect]}"
        return (Path(layers.__file__), f"LoRALinear.{SYMBOLS[aspect]}") if aspect in SYMBOLS else None


def _whole(adapted: Adapted) -> Any:
    return adapted.module._audited_model


def _adapted(layer: Any, whole: Any) -> Adapted:
    object.__setattr__(layer, "_audited_model", whole)  # saving is the model's
    return Adapted(layer, {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)})

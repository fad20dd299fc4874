# /// script
# requires-python = ">=3.11"
# dependencies = ["tinypeft==1.0.0", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""TinyPEFT 1.0.0: ``inject_lora``."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tinypeft.lora import lora
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

SYMBOLS = {"shapes": "LoRALayer.__init__", "init": "LoRALayer.__init__", "scale": "LoRALayer.__init__",
           "forward": "LoRALayer.forward", "dropout": "LoRALayer.forward", "merge": "merge_lora_weights",
           "save_load": "get_lora_state_dict", "targets": "inject_lora"}  # fmt: skip


class TinyPeft(Implementation):
    """``inject_lora``, ``merge_lora_weights`` and ``get_lora_state_dict`` of ``tinypeft.lora``."""

    name = "tinypeft"
    version = importlib.metadata.version("tinypeft")
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "conv1d"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A model that is ``base`` alone, with LoRA injected."""
        model = nn.ModuleDict({"layer": base})
        return self._injected(model, spec, ["layer"], base.training)["layer"]

    def _injected(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str], mode: bool
    ) -> dict[str, Adapted]:
        if spec.rslora:
            raise Unsupported("TinyPEFT has no rsLoRA")
        lora.inject_lora(model, spec.rank, spec.alpha, target_modules=list(targets), dropout=spec.dropout)
        model.train(mode)
        return {n: _adapted(m) for n, m in model.named_modules() if isinstance(m, lora.LoRALayer)}

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``inject_lora``, which takes parts of names."""
        if targets is None:
            raise Unsupported("inject_lora knows no architectures: by default it takes every linear layer")
        return self._injected(model, spec, targets, model.training)

    def save(self, adapted: Adapted, path: Path) -> None:
        """``get_lora_state_dict`` with ``torch.save``."""
        torch.save(lora.get_lora_state_dict(nn.ModuleDict({"layer": adapted.module})), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_lora_state_dict`` of a model with LoRA injected afresh."""
        adapted = self.adapt(base, spec)
        lora.load_lora_state_dict(nn.ModuleDict({"layer": adapted.module}), torch.load(path))
        return _adapted(adapted.module)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_lora_weights`` of a copy, whose base layer it is."""
        layer: Any = copy.deepcopy(adapted.module)
        return lora.merge_lora_weights(layer).base

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_lora_weights``."""
        lora.merge_lora_weights(adapted.module)

    def unmerge(self, adapted: Adapted) -> None:
        """``unmerge_lora_weights``."""
        lora.unmerge_lora_weights(adapted.module)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``lora/lora.py``."""
        return (Path(lora.__file__), SYMBOLS[aspect]) if aspect in SYMBOLS else None


def _adapted(layer: Any) -> Adapted:
    return Adapted(layer, {"A": Slot(layer.A), "B": Slot(layer.B)})

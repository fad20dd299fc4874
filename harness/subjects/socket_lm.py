# /// script
# requires-python = ">=3.11"
# dependencies = ["socket-lm==0.1.0", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""socket-lm 0.1.0: LoRA and DoRA by its ``LoRAAdapter``."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from socketimport.core import lora
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

SYMBOLS = {"shapes": "LoRALinear.__init__", "init": "LoRALinear.__init__", "scale": "LoRAConfig.scaling",
           "forward": "LoRALinear.forward", "dropout": "LoRALinear.forward", "merge": "LoRALinear.merge",
           "save_load": "LoRAAdapter.adapter_state_dict", "targets": "LoRAAdapter._attach"}  # fmt: skip


class SocketLm(Implementation):
    """``socketimport.core.lora.LoRAAdapter``; its factors are float32.

    With DoRA, dropout is applied to the entire input, which is an intentional design difference.
    """

    name = "socket-lm"
    version = importlib.metadata.version("socket-lm")
    variants = frozenset({"lora", "dora"})
    dtypes = frozenset({"float32"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A model that is ``base`` alone, adapted."""
        if spec.rank > min(base.in_features, base.out_features):
            raise Unsupported("socket-lm refuses a rank above the layer's sizes")
        return self._attached(nn.ModuleDict({"layer": base}), spec, ["layer"], base.training)["layer"]

    def _attached(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None, mode: bool
    ) -> dict[str, Adapted]:
        named = {} if targets is None else {"target_modules": tuple(targets)}
        config = lora.LoRAConfig(
            spec.rank,
            spec.alpha,
            spec.dropout,
            use_rslora=spec.rslora,
            use_dora=spec.variant == "dora",
            **named,
        )
        whole = lora.LoRAAdapter(model, config)
        whole.train(mode)
        return {n: _adapted(m, whole) for n, m in model.named_modules() if isinstance(m, lora.LoRALinear)}

    def save(self, adapted: Adapted, path: Path) -> None:
        """``adapter_state_dict`` with ``torch.save``."""
        torch.save(_whole(adapted).adapter_state_dict(), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_adapter_state_dict`` of a model that is adapted afresh."""
        adapted = self.adapt(base, spec)
        _whole(adapted).load_adapter_state_dict(torch.load(path))
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge`` of a copy, whose base layer it is."""
        layer: Any = copy.deepcopy(adapted.module)
        layer.merge()
        return layer.base

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
        """``LoRAAdapter`` of the model; by default the targets of its configuration."""
        return self._attached(model, spec, targets, model.training)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``core/lora.py``."""
        if (variant, aspect) in (("dora", "forward"), ("dora", "dropout")):
            return Path(lora.__file__), "LoRALinear._forward_dora"
        return (Path(lora.__file__), SYMBOLS[aspect]) if aspect in SYMBOLS else None


def _whole(adapted: Adapted) -> Any:
    return adapted.module._audited_model


def _adapted(layer: Any, whole: Any) -> Adapted:
    slots = {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)}
    if layer.magnitude is not None:
        slots["m"] = Slot(layer.magnitude)
    object.__setattr__(layer, "_audited_model", whole)  # saving is the model's
    return Adapted(layer, slots)

"""AdapterHub's adapters, one layer: its LoRA around a linear layer, with the configuration of a model."""

from __future__ import annotations

import copy
import dataclasses
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from adapters.composition import Stack
from adapters.configuration import IA3Config, LoRAConfig, ModelAdaptersConfig
from adapters.methods.lora import LoRALinear
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

NAME = "default"


class Adapters(Implementation):
    """adapters' LoRA and (IA)³ on the output side; the base is frozen as ``train_adapter`` freezes it."""

    name = "adapters"
    version = version("adapters")
    variants = frozenset({"lora", "ia3"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """No rsLoRA; (IA)³'s gate on the output."""
        return dataclasses.replace(spec, rslora=False, feedforward=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``LoRALinear.wrap`` and ``add_adapter``, as ``adapters.init`` and ``add_adapter`` of a model do."""
        config = ModelAdaptersConfig()
        config.add(NAME, _config(spec))
        layer: Any = LoRALinear.wrap(base, "selfattn", SimpleNamespace(model_type="bert"), config)
        if not layer.add_adapter(NAME, 0):
            raise Unsupported("adapters put no adapter on this layer")
        config.active_setup = Stack(NAME)
        layer.requires_grad_(False)
        layer.loras.requires_grad_(True)
        layer.loras.to(base.weight.dtype)
        layer.train(base.training)
        return Adapted(layer, _slots(layer.loras[NAME], spec))

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_adapter``."""
        _layer(adapted).merge_adapter(NAME)

    def unmerge(self, adapted: Adapted) -> None:
        """``reset_adapter``."""
        _layer(adapted).reset_adapter()

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_adapter`` of a copy, whose weight is put into a plain layer."""
        layer = copy.deepcopy(_layer(adapted))
        layer.merge_adapter(NAME)
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        return plain


def _layer(adapted: Adapted) -> Any:
    return adapted.module


def _config(spec: AdapterSpec) -> Any:
    if spec.variant == "ia3":
        return IA3Config()
    return LoRAConfig(r=spec.rank, alpha=spec.alpha, dropout=spec.dropout)


def _slots(lora: Any, spec: AdapterSpec) -> dict[str, Slot]:
    if spec.variant == "ia3":
        return {"l": Slot(lora.lora_B, lambda t: t.reshape(-1))}
    return {"A": Slot(lora.lora_A), "B": Slot(lora.lora_B)}

"""GraphPKU/PiSSA: the function `pissa_quant` with a quantiser that quantises nothing, on PEFT's LoRA layer.

The file itself parses arguments, asks for a GPU and downloads a model, so the function alone is taken out;
around it the authors' script is `get_peft_model` with alpha = r, then factors and residual loaded in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.base import AuthorImplementation
from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from oracles.peft import Peft

__all__ = ["PissaAuthor"]


class PissaAuthor(AuthorImplementation):
    """The factors in float32 whatever the base is, one iteration (the script's default), scale 1."""

    variant, alias = "pissa", "orig_pissa_quant.py"

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """Alpha is the rank."""
        return dataclasses.replace(spec, alpha=spec.rank)

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Raises Unsupported for alpha other than the rank: the script has no such option."""
        adapted = self._on_peft(base, spec)
        split = loader.function(self.reference, "pissa_quant", self.cache, quantize_and_dequantized=_exact)
        _, residual, A, B = split(base.weight.detach().clone(), spec.rank, 1)
        with torch.no_grad():
            for name, value in (("A", A), ("B", B), ("W", residual)):
                adapted.slots[name].tensor.copy_(value)
        return adapted

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """The adapter and the residual model: the script saves both."""
        kept = ("lora_A", "lora_B", "base_layer.weight")
        return {key: value for key, value in adapted.module.state_dict().items() if key.startswith(kept)}

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """The residual model with its adapter on top; no second factorisation."""
        adapted = self._on_peft(base, spec)
        adapted.module.load_state_dict(torch.load(path, weights_only=True), strict=False)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """merge_adapter.py: PEFT's merge_and_unload."""
        return Peft().merge(adapted)

    def _on_peft(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.alpha != spec.rank:
            raise Unsupported("pissa/author: the authors' script sets alpha to the rank")
        if spec.rank > min(base.weight.shape):
            raise Unsupported(
                "pissa/author: fewer singular values than the rank, the factors do not fit PEFT's layer"
            )
        lora = AdapterSpec("lora", rank=spec.rank, alpha=spec.rank, dropout=spec.dropout)
        adapted = Peft().adapt(base, lora)
        residual = adapted.module.get_base_layer().weight  # type: ignore[operator]
        return Adapted(adapted.module, {**adapted.slots, "W": Slot(residual)})


def _exact(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A quantiser without error: the stored form and what it stands for."""
    return weight, weight

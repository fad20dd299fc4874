# /// script
# requires-python = "==3.11.*"
# dependencies = ["loralib==0.1.2", "torch==2.13.0", "numpy"]
# ///
"""loralib, the LoRA authors' package: a layer made in place of the base takes its weights, as in its README."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import loralib
import torch
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported


class Loralib(Implementation):
    """loralib's Linear and Embedding. It has no rsLoRA, and no dropout on embeddings.

    Its convolutions have factors (r k, in k) and (out k, r k), which is another method than LoRA on the patches.
    """

    name = "loralib"
    version = version("loralib")
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "embedding"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return _in_mode_of(base, _layer(base, spec))

    def save(self, adapted: Adapted, path: Path) -> None:
        """As the README saves a checkpoint."""
        torch.save(loralib.lora_state_dict(adapted.module), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """As the README loads: the pretrained weights, then the LoRA checkpoint, both with ``strict=False``."""
        layer = _layer(base, spec)
        layer.load_state_dict(torch.load(path), strict=False)
        return _in_mode_of(base, layer)

    def merge(self, adapted: Adapted) -> nn.Module:  # type: ignore[override]
        """The weight that ``eval()`` folds, in a plain layer."""
        folded: Any = copy.deepcopy(adapted.module)
        folded.eval()  # loralib's train() returns nothing, and so does this
        if isinstance(folded, nn.Embedding):
            return nn.Embedding.from_pretrained(folded.weight, padding_idx=folded.padding_idx)
        plain = nn.Linear(folded.in_features, folded.out_features, folded.bias is not None)
        plain.weight, plain.bias = folded.weight, folded.bias
        return plain

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "reset_parameters", "scale": "forward", "forward": "forward",
                   "dropout": "forward", "merge": "train"}  # fmt: skip
        if aspect == "save_load":
            return Path(inspect.getfile(loralib.lora_state_dict)), "lora_state_dict"
        file = Path(inspect.getfile(loralib.Linear))
        return (file, f"Linear.{methods[aspect]}") if aspect in methods else None


def _layer(base: Any, spec: AdapterSpec) -> Any:
    """loralib's layer with the pretrained weights of ``base``, all but the adapter frozen; in training mode."""
    made = {
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "device": base.weight.device,
        "dtype": base.weight.dtype,
    }
    if isinstance(base, nn.Embedding):
        if type(base) is not nn.Embedding:
            raise Unsupported(f"a {type(base).__name__} has no layer of loralib's to take its place")
        sizes = (base.num_embeddings, base.embedding_dim)
        layer: Any = loralib.Embedding(*sizes, padding_idx=base.padding_idx, **made)
    else:
        bias = base.bias is not None
        layer = loralib.Linear(
            base.in_features, base.out_features, lora_dropout=spec.dropout, bias=bias, **made
        )
    layer.load_state_dict(base.state_dict(), strict=False)
    loralib.mark_only_lora_as_trainable(layer)
    return layer


def _in_mode_of(base: nn.Module, layer: Any) -> Adapted:
    layer.train(base.training)
    return Adapted(layer, {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)})

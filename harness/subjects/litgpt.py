# /// script
# requires-python = "==3.11.*"
# dependencies = ["litgpt==0.5.13", "torch==2.13.0", "numpy"]
# ///
"""LitGPT's LoRA layer, saved, loaded and merged as ``litgpt finetune lora`` and ``litgpt merge_lora`` do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt import lora
from litgpt.scripts.merge_lora import load_lora_metadata
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

WEIGHTS = "lit_model.pth.lora"


class LitGPT(Implementation):
    """LitGPT's LoRALinear. It has no rsLoRA; which of a model's layers are adapted, its own GPT knows."""

    name = "litgpt"
    version = version("litgpt")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A layer in the base's dtype, the LoRA parameters alone trainable, the base's weights loaded."""
        bias = base.bias is not None
        layer = lora.LoRALinear(
            base.in_features, base.out_features, spec.rank, spec.alpha, spec.dropout, bias=bias
        )
        layer.to(base.weight.dtype)
        lora.mark_only_lora_as_trainable(layer)
        layer.linear.load_state_dict(base.state_dict())
        layer.train(base.training)
        return Adapted(layer, {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)})

    def save(self, adapted: Adapted, path: Path) -> None:
        """What ``lora_filter`` lets through, and the hyperparameters, as ``litgpt finetune lora`` writes them."""
        path.mkdir(parents=True, exist_ok=True)
        layer: Any = adapted.module
        state = layer.state_dict()
        torch.save({"model": {n: t for n, t in state.items() if lora.lora_filter(n, t)}}, path / WEIGHTS)
        settings = {"checkpoint_dir": "base", "lora_r": layer.r, "lora_alpha": layer.lora_alpha}
        (path / "hyperparameters.yaml").write_text(yaml.dump(settings))

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """A layer of the file's hyperparameters; the pretrained checkpoint updated with the LoRA weights, strictly."""
        found = load_lora_metadata(path)[0]
        adapted = self.adapt(base, dataclasses.replace(spec, rank=found["lora_r"], alpha=found["lora_alpha"]))
        pretrained = {f"linear.{name}": tensor for name, tensor in base.state_dict().items()}
        adapted.module.load_state_dict({**pretrained, **torch.load(path / WEIGHTS)["model"]})
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_lora_weights`` of a copy; the plain layer within is what ``litgpt merge_lora`` keeps."""
        merged: Any = copy.deepcopy(adapted.module)
        lora.merge_lora_weights(merged)
        plain: nn.Linear = merged.linear
        return plain

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "reset_parameters", "scale": "forward", "forward": "forward",
                   "dropout": "forward", "merge": "merge"}  # fmt: skip
        file = Path(inspect.getfile(lora))
        if aspect == "save_load":
            return Path(inspect.getfile(load_lora_metadata)), "merge_lora"
        return (file, f"LoRALinear.{methods[aspect]}") if aspect in methods else None

# /// script
# requires-python = "==3.11.*"
# dependencies = ["hqq==0.2.8.post1", "torch==2.13.0", "numpy", "tqdm", "termcolor"]
#
# [tool.uv]
# exclude-dependencies = ["einops", "accelerate", "transformers", "huggingface_hub"]
# ///
"""HQQ's LoRA around a linear layer; it is written for quantised ones and says that it takes any."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hqq.core import peft
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot


class HQQ(Implementation):
    """HQQ's HQQLinearLoRA. It merges into a newly quantised layer only, which is no plain one."""

    name = "hqq"
    version = version("hqq")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``compute_dtype`` is what an HQQLinear has; on a layer without it the constructor raises a NameError."""
        training = base.training
        base.requires_grad_(False)
        base.compute_dtype = base.weight.dtype  # type: ignore[assignment]
        config = {
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "dropout": spec.dropout,
            "train_dtype": base.weight.dtype,
        }
        return _adapted(peft.HQQLinearLoRA(base, config).train(training))

    def save(self, adapted: Adapted, path: Path) -> None:
        """The layer's own state dict, written as ``PeftUtils.save_lora_weights`` writes those of a model."""
        layer: Any = adapted.module
        torch.save({"peft_config": layer.peft_config, "parameters": {"layer": layer.state_dict()}}, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """As ``PeftUtils.load_lora_weights``: a layer of the file's configuration, then its weights."""
        found, training = torch.load(path, map_location="cpu"), base.training
        base.requires_grad_(False)
        base.compute_dtype = base.weight.dtype  # type: ignore[assignment]
        layer = peft.HQQLinearLoRA(base, found["peft_config"])
        layer.load_state_dict(found["parameters"]["layer"])
        return _adapted(layer.train(training))

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "__init__", "scale": "forward_lora", "forward": "forward",
                   "dropout": "forward_lora", "save_load": "load_state_dict"}  # fmt: skip
        return (
            (Path(inspect.getfile(peft)), f"HQQLinearLoRA.{methods[aspect]}") if aspect in methods else None
        )


def _adapted(layer: Any) -> Adapted:
    """lora_A is (in, r), lora_B (r, out)."""
    return Adapted(layer, {"A": Slot(layer.lora_A, Tensor.t), "B": Slot(layer.lora_B, Tensor.t)})

# /// script
# requires-python = "==3.11.*"
# dependencies = ["mace-torch==0.3.16", "torch==2.13.0", "e3nn==0.4.4", "numpy", "setuptools<81"]
#
# [tool.uv]
# exclude-dependencies = [
#   "ase", "torch-ema", "prettytable", "matscipy", "h5py", "torchmetrics", "python-hostlist",
#   "configargparse", "GitPython", "pyYAML", "tqdm", "lmdb", "orjson", "matplotlib", "pandas",
# ]
# ///
"""MACE's LoRA around linear layers: ``inject_LoRAs`` wraps every one of a model, equivariant ones and plain."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import mace  # noqa: F401  (sets the variable without which e3nn 0.4.4 cannot be imported)
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

FILE = Path(str(distribution("mace-torch").locate_file("mace/modules/lora.py")))


def _module() -> Any:
    """The file alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("mace_lora", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LORA = _module()


class OneLayer(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Mace(Implementation):
    """MACE's LoRADenseLinear. It has neither dropout nor rsLoRA, and saves whole models."""

    name = "mace-torch"
    version = version("mace-torch")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no dropout and no rsLoRA."""
        return dataclasses.replace(spec, dropout=0.0, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        training, model = base.training, OneLayer(base)
        LORA.inject_LoRAs(model, rank=spec.rank, alpha=spec.alpha)
        layer: Any = model.layer
        slots = {"A": Slot(layer.lora_A.weight), "B": Slot(layer.lora_B.weight)}
        return Adapted(model.train(training), slots)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_lora_weights`` on a copy, which it offers to make itself."""
        merged: Any = LORA.merge_lora_weights(copy.deepcopy(adapted.module), inplace=True)
        plain: nn.Linear = merged.layer
        return plain

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "__init__", "scale": "__init__", "forward": "forward",
                   "merge": "merge_into_base"}  # fmt: skip
        if aspect == "targets":
            return FILE, "inject_lora"
        return (FILE, f"LoRADenseLinear.{methods[aspect]}") if aspect in methods else None

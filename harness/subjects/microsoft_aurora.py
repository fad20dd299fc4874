# /// script
# requires-python = "==3.11.*"
# dependencies = ["microsoft-aurora==2.0.1", "torch==2.13.0", "numpy"]
#
# [tool.uv]
# exclude-dependencies = [
#   "azure-storage-blob", "einops", "huggingface-hub", "netcdf4", "pydantic", "scipy", "timm", "xarray",
# ]
# ///
"""Aurora's LoRA, which its attention adds to the output of a linear layer."""

from __future__ import annotations

import dataclasses
import importlib.util
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot

FILE = Path(str(distribution("microsoft-aurora").locate_file("aurora/model/lora.py")))


def _module() -> Any:
    """The file alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("aurora_lora", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LORA = _module()


class WithLora(nn.Module):
    """``self.qkv(x) + self.lora_qkv(x, step)``, as Aurora's attention has it, of one step."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        sizes = {"r": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout}
        self.base = base.requires_grad_(False)
        self.lora = LORA.LoRARollout(base.in_features, base.out_features, **sizes).to(base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.base(x) + self.lora(x, 0)
        return found


class Aurora(Implementation):
    """Aurora's ``LoRARollout`` in its mode "single". It has no rsLoRA, and saves whole models only."""

    name = "microsoft-aurora"
    version = version("microsoft-aurora")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = WithLora(base, spec)
        factors: Any = layer.lora.loras[0]
        return Adapted(layer.train(base.training), {"A": Slot(factors.lora_A), "B": Slot(factors.lora_B)})

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "init_weights", "scale": "forward", "forward": "forward",
                   "dropout": "forward"}  # fmt: skip
        return (FILE, f"LoRA.{methods[aspect]}") if aspect in methods else None

# /// script
# requires-python = "==3.11.*"
# dependencies = ["flashdet==1.2.1", "torch==2.13.0", "numpy"]
#
# [tool.uv]
# exclude-dependencies = ["torchvision", "opencv-python", "Pillow", "pycocotools", "PyYAML", "tqdm"]
# ///
"""FlashDet's LoRA and DoRA: ``apply_lora`` replaces the layers of a model's named parts."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

FILE = Path(str(distribution("flashdet").locate_file("flashdet/models/lora.py")))
VARIANTS = {"lora": "standard", "dora": "dora"}


def _module() -> Any:
    """The file alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("flashdet_lora", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LORA = _module()


class Model(nn.Module):
    """A model whose backbone is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.backbone(x)
        return found


class FlashDet(Implementation):
    """FlashDet's "standard" and "dora". It has no rsLoRA; targets are top-level parts of its own model."""

    name = "flashdet"
    version = version("flashdet")
    variants = frozenset(VARIANTS)

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        model, dtype, training = Model(base), base.weight.dtype, base.training
        sizes = {"rank": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout}
        LORA.apply_lora(model, target_modules=["backbone"], variant=VARIANTS[spec.variant], **sizes)
        model.to(dtype)
        if spec.variant == "dora":  # of the weight in its own precision
            model.backbone[0]._init_magnitude_from_weight()  # type: ignore[operator]
        return _adapted(model.train(training))

    def save(self, adapted: Adapted, path: Path) -> None:
        """``get_lora_state_dict``, with the file format of FlashDet's trainer."""
        torch.save(LORA.get_lora_state_dict(adapted.module), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = self.adapt(base, spec)
        adapted.module.load_state_dict(torch.load(path), strict=False)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_lora_weights`` of a copy; the layer then computes with its weight alone."""
        model: Any = copy.deepcopy(adapted.module)
        if not isinstance(model.backbone[0], LORA.LoRALinear):
            raise Unsupported("merge_lora_weights leaves DoRA's layers as they are")
        layer = LORA.merge_lora_weights(model).backbone[0]
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        return plain

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        kind = "DoRALinear" if variant == "dora" else "LoRALinear"
        methods = {"shapes": "__init__", "init": "__init__", "scale": "forward", "forward": "forward",
                   "dropout": "forward"}  # fmt: skip
        functions = {
            "merge": "merge_lora_weights",
            "save_load": "get_lora_state_dict",
            "targets": "apply_lora",
        }
        if aspect in functions:
            return FILE, functions[aspect]
        return (FILE, f"{kind}.{methods[aspect]}") if aspect in methods else None


def _adapted(model: Any) -> Adapted:
    layer = model.backbone[0]
    slots = {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)}
    return Adapted(model, {**slots, "m": Slot(layer.magnitude)} if hasattr(layer, "magnitude") else slots)

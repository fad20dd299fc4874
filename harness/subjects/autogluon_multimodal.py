# /// script
# requires-python = "==3.11.*"
# dependencies = ["autogluon.multimodal==1.6.3", "torch==2.13.0", "numpy"]
#
# [tool.uv]
# exclude-dependencies = [
#   "scipy", "pandas", "scikit-learn", "Pillow", "tqdm", "boto3", "lightning", "transformers", "accelerate", "fsspec",
#   "requests", "jsonschema", "seqeval", "evaluate", "timm", "torchvision", "scikit-image", "text-unidecode",
#   "torchmetrics", "omegaconf", "autogluon.core", "autogluon.features", "autogluon.common", "pytorch-metric-learning",
#   "nlpaug", "nltk", "openmim", "defusedxml", "jinja2", "tensorboard", "pytesseract", "nvidia-ml-py3", "pdf2image",
# ]
# ///
"""AutoGluon-Multimodal's LoRA and (IA)³ layers, made and given the base's tensors as its injection does."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

FILE = Path(
    str(distribution("autogluon.multimodal").locate_file("autogluon/multimodal/models/adaptation_layers.py"))
)


def _layers() -> Any:
    """The module of the layers alone: importing the package brings what the excluded dependencies are needed for."""
    spec = importlib.util.spec_from_file_location("adaptation_layers", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["adaptation_layers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LAYERS = _layers()


class AutoGluon(Implementation):
    """AutoGluon's ``create_adaptation``: rank and alpha for LoRA, nothing for (IA)³, ``merge_weights=False``."""

    name = "autogluon.multimodal"
    version = version("autogluon.multimodal")
    variants = frozenset({"lora", "ia3"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """The injection passes on no dropout and no rsLoRA."""
        return dataclasses.replace(spec, dropout=0.0, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """As ``create_adaptation`` and its caller; the trainer freezes what is no adapter."""
        if spec.feedforward:
            raise Unsupported("IA3Linear gates outputs")
        base.requires_grad_(False)
        sizes = (base.in_features, base.out_features)
        if spec.variant == "ia3":
            layer = LAYERS.IA3Linear(*sizes, merge_weights=False)
        else:
            layer = LAYERS.LoRALinear(*sizes, r=spec.rank, lora_alpha=spec.alpha, merge_weights=False)
        layer.weight, layer.bias = base.weight, base.bias
        layer.to(base.weight.dtype)
        layer.train(base.training)
        slots = {"l": Slot(layer.lora_b, lambda t: t[:, 0])} if spec.variant == "ia3" else {
            "A": Slot(layer.lora_A), "B": Slot(layer.lora_B)}  # fmt: skip
        return Adapted(layer, slots)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        kind = "IA3Linear" if variant == "ia3" else "LoRALinear"
        start = "reset_parameters" if variant == "lora" else "__init__"
        methods = {
            "shapes": "__init__",
            "init": start,
            "scale": "forward",
            "forward": "forward",
            "merge": "eval",
        }
        return (FILE, f"{kind}.{methods[aspect]}") if aspect in methods else None

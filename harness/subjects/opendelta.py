# /// script
# requires-python = "==3.11.*"
# dependencies = ["opendelta==0.3.2", "transformers==4.30.2", "torch==2.13.0", "numpy<2", "setuptools<81", "requests"]
#
# [tool.uv]
# exclude-dependencies = ["sklearn", "datasets", "sentencepiece", "scipy"]
# ///
"""OpenDelta's LoRA: a parallel module that is inserted into the backbone model's layers."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

if "turtle" not in sys.modules:  # basemodel imports a name of it that it does not use; it needs a display
    sys.modules["turtle"] = ModuleType("turtle")
    sys.modules["turtle"].back = None  # type: ignore[attr-defined]

from opendelta import LoraModel
from opendelta.basemodel import DeltaBase
from opendelta.delta_models.lora import LowRankLinear
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported


class OneLayer(nn.Module):
    """A backbone model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class OpenDelta(Implementation):
    """OpenDelta's LoraModel. It has no rsLoRA and does not merge.

    Whole models are not asked: the releases of transformers that it can import have other modules than the audit's.
    """

    name = "opendelta"
    version = version("opendelta")
    variants = frozenset({"lora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        model = OneLayer(base)
        delta = _delta(model, spec, ["layer"])
        return _adapted(model.train(base.training), delta)

    def save(self, adapted: Adapted, path: Path) -> None:
        _of(adapted).save_finetuned(str(path))

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``from_finetuned``, then frozen, as is said of further training."""
        training, model = base.training, OneLayer(base)
        delta = LoraModel.from_finetuned(str(path), backbone_model=model)
        delta.freeze_module(exclude=["deltas"])
        return _adapted(model.train(training), delta)

    def detach(self, adapted: Adapted) -> nn.Linear:
        model: Any = adapted.module
        _of(adapted).detach()
        plain: nn.Linear = model.layer
        return plain

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``attach``, which a ``detach`` has to precede, and ``detach``."""
        if list(names) not in ([], ["default"]):
            raise Unsupported("OpenDelta's modules have no names to choose by")
        layer: Any = adapted.module.layer
        is_on = layer._delta_infos[0]["state"] == "on"
        if is_on != bool(names):
            _of(adapted).attach() if names else _of(adapted).detach()

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        methods = {"shapes": "__init__", "init": "__init__", "scale": "forward", "forward": "forward",
                   "dropout": "forward"}  # fmt: skip
        if aspect == "targets":
            return Path(inspect.getfile(DeltaBase)), "DeltaBase.find_key"
        if aspect == "save_load":
            return Path(inspect.getfile(DeltaBase.save_finetuned)), "SaveLoadMixin.save_finetuned"
        file = Path(inspect.getfile(LowRankLinear))
        return (file, f"LowRankLinear.{methods[aspect]}") if aspect in methods else None


def _delta(model: nn.Module, spec: AdapterSpec, targets: Any) -> Any:
    sizes = {"lora_r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout}
    delta = LoraModel(backbone_model=model, modified_modules=targets, **sizes)
    delta.freeze_module(exclude=["deltas"])
    return delta


def _of(adapted: Adapted) -> Any:
    return adapted.module.__dict__["delta"]


def _adapted(model: OneLayer, delta: Any) -> Adapted:
    model.__dict__["delta"] = delta  # beside the modules: it is not part of the backbone
    return Adapted(model, _slots(model.layer.lora))


def _slots(lora: Any) -> dict[str, Slot]:
    return {"A": Slot(lora.lora_A), "B": Slot(lora.lora_B)}

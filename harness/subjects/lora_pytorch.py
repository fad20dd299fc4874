# /// script
# requires-python = "==3.11.*"
# dependencies = ["lora-pytorch==0.2.0", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""lora-pytorch: ``LoRA.from_module`` wraps a layer, or a model, with an adapter of the rank that is given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_pytorch import LoRA
from lora_pytorch import lora as functions
from lora_pytorch.modules.linear import LinearLoRAModule
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported


class LoraPytorch(Implementation):
    """lora-pytorch. ``from_module`` takes a rank, and neither alpha nor dropout; what it makes it does not save."""

    name = "lora-pytorch"
    version = version("lora-pytorch")
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "embedding", "conv2d"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """The update is x A B as it stands: alpha is the rank. No dropout and no rsLoRA."""
        return dataclasses.replace(spec, alpha=float(spec.rank), dropout=0.0, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return _adapted(LoRA.from_module(base, rank=spec.rank))

    def merge(self, adapted: Adapted) -> nn.Linear:
        return _lora(adapted).merge_lora(inplace=False)

    def detach(self, adapted: Adapted) -> nn.Linear:
        return _lora(adapted).remove_lora(inplace=False)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``enable_lora`` and ``disable_lora``."""
        if list(names) not in ([], ["default"]):
            raise Unsupported("lora-pytorch has one adapter, without a name")
        _lora(adapted).enable_lora() if names else _lora(adapted).disable_lora()

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """Raises Unsupported: ``from_module`` adapts every layer that it knows, the head and embeddings too."""
        raise Unsupported("lora-pytorch has no choice of targets: it adapts every layer that it knows")

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        layer, whole = Path(inspect.getfile(LinearLoRAModule)), Path(inspect.getfile(functions))
        if aspect in ("shapes", "init", "scale"):
            return layer, "LinearLoRAModule.__init__"
        places = {"forward": (whole, "LoRA.forward"), "dropout": (layer, "LinearLoRAModule.forward"),
                  "merge": (layer, "LinearLoRAModule.merge"), "targets": (whole, "LoRA.from_module")}  # fmt: skip
        return places.get(aspect)


def _lora(adapted: Adapted) -> Any:
    return adapted.module


def _adapted(module: Any) -> Adapted:
    """The factors: of linear layers and embeddings (in, r) and (r, out), of convolutions two convolutions."""
    factors = module.lora_module
    if hasattr(factors, "in_conv"):
        return Adapted(module, {"A": Slot(factors.in_conv.weight), "B": Slot(factors.out_conv.weight)})
    turned: Callable[[Tensor], Tensor] = Tensor.t
    return Adapted(module, {"A": Slot(factors.in_proj, turned), "B": Slot(factors.out_proj, turned)})

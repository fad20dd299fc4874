"""One of LyCORIS's LoRA modules on a layer, with and without weight decomposition, saved as its network saves it."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lycoris.modules.locon import LoConModule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot


class OneLayer(nn.Module):
    """A layer whose forward LyCORIS replaces, and the module that it keeps beside it."""

    def __init__(self, layer: nn.Linear, lora: Any) -> None:
        super().__init__()
        self.layer, self.lora = layer.requires_grad_(False), lora

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Lycoris(Implementation):
    """The LyCORIS that is installed here."""

    name = "lycoris-lora"
    version = version("lycoris-lora")
    variants = frozenset({"lora", "dora"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """No rsLoRA through this constructor."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The module's constructor, and ``apply_to``."""
        lora = LoConModule(
            "layer", base, 1.0, spec.rank, spec.alpha, spec.dropout, weight_decompose=spec.variant == "dora"
        )
        model = OneLayer(base, lora.to(base.weight.dtype))
        lora.apply_to()
        return Adapted(model.train(base.training), _slots(lora))

    def save(self, adapted: Adapted, path: Path) -> None:
        """``custom_state_dict`` where the module has one, as the network's ``save_weights`` takes it."""
        lora: Any = adapted.module.lora
        state = lora.custom_state_dict() if hasattr(lora, "custom_state_dict") else None
        state = lora.state_dict() if state is None else state
        save_file({name: t.detach().clone().contiguous() for name, t in state.items()}, str(path))

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """The tensors into a fresh module; LyCORIS ignores those that are missing."""
        adapted = self.adapt(base, spec)
        lora: Any = adapted.module.lora
        lora.load_state_dict(load_file(str(path)), strict=False)
        return adapted


def _slots(lora: Any) -> dict[str, Slot]:
    slots = {"A": Slot(lora.lora_down.weight), "B": Slot(lora.lora_up.weight)}
    if getattr(lora, "wd", False):
        slots["m"] = Slot(lora.dora_scale, lambda t: t.reshape(-1))
    return slots

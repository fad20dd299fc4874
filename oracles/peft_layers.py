"""PEFT's tuner layers as the audit handles them: where each canonical tensor of an adapter lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Slot
from oracles.variants import VARIANTS
from oracles.variants.record import Binding

if TYPE_CHECKING:
    import peft

FIRST = "default"  # what PEFT calls the first adapter
BINDINGS: dict[str, Binding] = {id_: v.peft for id_, v in VARIANTS.items() if v.peft is not None}


class OneLayer(nn.Module):
    """A model that is one linear layer: PEFT adapts models, the audit compares layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        # What transformers sets on a model whose layers bitsandbytes has quantised, and PEFT asks for.
        self.is_loaded_in_4bit = type(layer).__name__ == "Linear4bit"
        self.is_loaded_in_8bit = type(layer).__name__ == "Linear8bitLt"

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.layer(x)


def _resolve(module: nn.Module, path: str) -> Tensor:
    node: Any = module
    for part in path.split("."):
        node = node[part] if isinstance(node, nn.ParameterDict | nn.ModuleDict) else _member(node, part)
    return node


def _member(node: Any, part: str) -> Any:
    # PEFT's BufferDict answers to [] only, modules and ParameterDicts to attributes as well.
    return getattr(node, part) if hasattr(node, part) else node[part]


def of_kind(tuner: Any, path: str) -> str:
    """Where a tensor lives on this kind of layer: an embedding's factors have names of their own."""
    if not isinstance(tuner.get_base_layer(), nn.Embedding):
        return path
    for factor in ("A", "B"):
        if path.startswith(f"lora_{factor}."):
            return path.replace(f"lora_{factor}.", f"lora_embedding_{factor}.").removesuffix(".weight")
    return path


def is_linear(tuner: Any) -> bool:
    """Whether the layer beneath a tuner layer has a weight of two dimensions that it multiplies with."""
    base = tuner.get_base_layer()
    return not isinstance(base, nn.Embedding | nn.Conv2d)


def slots_of(module: nn.Module, spec: AdapterSpec, adapter: str = FIRST) -> dict[str, Slot]:
    """The canonical tensors of one of a tuner layer's adapters; on other kinds of layers in PEFT's own shapes."""
    binding = BINDINGS[spec.variant]
    paths = {name: of_kind(module, path.replace(FIRST, adapter)) for name, path in binding.paths.items()}
    tensors = {name: _resolve(module, path) for name, path in paths.items()}
    if binding.view is None or not is_linear(module):
        return {name: Slot(tensor) for name, tensor in tensors.items()}
    return {name: Slot(tensor, binding.view(name, spec, module)) for name, tensor in tensors.items()}


def layers_of(tuned: peft.PeftModel, spec: AdapterSpec) -> dict[str, Adapted]:
    """Module name -> tuner layer of a whole model, in module order."""
    import peft

    return {
        name: Adapted(layer, slots_of(layer, BINDINGS[spec.variant].sided(layer, spec)))
        for name, layer in tuned.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
    }

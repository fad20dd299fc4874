"""HF PEFT, as installed, through its public API: ``get_peft_model`` on a one-layer model.

One builder per variant makes PEFT's config from an AdapterSpec; one table names where PEFT keeps each canonical
tensor. Nothing here computes anything. PEFT itself is imported where it is called: it takes seconds, and a process
that only collects what others find never needs it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from oracles.paper import principal_factors
from oracles.peft_lifecycle import FIRST, Lifecycle

if TYPE_CHECKING:
    import peft

Targets = list[str]


def _lora(spec: AdapterSpec, targets: Targets, **more: Any) -> peft.PeftConfig:
    import peft

    return peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=targets, **more
    )


def _ia3(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.IA3Config(target_modules=targets, feedforward_modules=targets if spec.feedforward else [])


def _hra(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.HRAConfig(r=spec.rank, apply_GS=spec.gram_schmidt, target_modules=targets)


def _delora(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.DeloraConfig(
        r=spec.rank, delora_lambda=spec.lambda0, module_dropout=spec.dropout, target_modules=targets
    )


def _squeeze_column(tensor: Tensor) -> Tensor:
    return tensor[:, 0]


def _squeeze_row(tensor: Tensor) -> Tensor:
    return tensor[0]


@dataclass(frozen=True)
class Binding:
    """How one variant is asked of PEFT, and where its canonical tensors live on the tuner layer."""

    config: Callable[[AdapterSpec, Targets], peft.PeftConfig]
    paths: Mapping[str, str]
    view: Callable[[AdapterSpec], Callable[[Tensor], Tensor]] | None = None


def _gate_view(spec: AdapterSpec) -> Callable[[Tensor], Tensor]:
    return _squeeze_row if spec.feedforward else _squeeze_column


_FACTORS = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
BINDINGS: dict[str, Binding] = {
    "lora": Binding(_lora, _FACTORS),
    "pissa": Binding(
        lambda spec, targets: _lora(spec, targets, init_lora_weights="pissa"),
        {**_FACTORS, "W": "base_layer.weight"},
    ),
    "dora": Binding(
        lambda spec, targets: _lora(spec, targets, use_dora=True),
        {**_FACTORS, "m": "lora_magnitude_vector.default.weight"},
    ),
    "ia3": Binding(_ia3, {"l": "ia3_l.default"}, view=_gate_view),
    "hra": Binding(_hra, {"U": "hra_u.default"}),
    "delora": Binding(
        _delora,
        {
            "A": "delora_A.default",
            "B": "delora_B.default",
            "lambda": "delora_lambda.default",
            "w_norm": "delora_w_norm.default",
        },
    ),
}


class OneLayer(nn.Module):
    """A model that is one linear layer: PEFT adapts models, the audit compares layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

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


def slots_of(module: nn.Module, spec: AdapterSpec, adapter: str = FIRST) -> dict[str, Slot]:
    """The canonical tensors of one of a tuner layer's adapters."""
    binding = BINDINGS[spec.variant]
    tensors = {name: _resolve(module, path.replace(FIRST, adapter)) for name, path in binding.paths.items()}
    if binding.view is None:
        return {name: Slot(tensor) for name, tensor in tensors.items()}
    return {name: Slot(tensor, binding.view(spec)) for name, tensor in tensors.items()}


class Peft(Lifecycle, Implementation):
    """The installed PEFT release, as an oracle and as a subject."""

    name = "peft"
    version = version("peft")
    variants = frozenset(BINDINGS)

    def _wrap(self, base: nn.Linear, spec: AdapterSpec) -> peft.PeftModel:
        import peft

        config = BINDINGS[spec.variant].config(spec, ["layer"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.get_peft_model(OneLayer(base), config)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` inside a PEFT tuner layer; the adapter is called "default"."""
        return self._adapted(self._wrap(base, spec), spec)

    def evaluator(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The adapter on a base of any dtype, for parameters that are written into it afterwards.

        PEFT factorises PiSSA in half or single precision only; its forward is LoRA's on the residual weight, so
        a float64 evaluation starts as LoRA and shows the base weight as the slot W.
        """
        if spec.variant != "pissa" or base.weight.dtype != torch.float64:
            return self.adapt(base, spec)
        W = base.weight.detach().clone()
        adapted = self.adapt(base, dataclasses.replace(spec, variant="lora"))
        start = principal_factors(W, spec)
        slots = {**adapted.slots, "W": Slot(adapted.module.base_layer.weight)}  # type: ignore[union-attr, arg-type]
        with torch.no_grad():
            for name, slot in slots.items():
                slot.tensor.copy_(start[name])
        return Adapted(adapted.module, slots)

    def _adapted(self, model: peft.PeftModel, spec: AdapterSpec) -> Adapted:
        layer = model.base_model.model.layer
        adapted = Adapted(layer, slots_of(layer, spec))
        # The model goes with its layer: save and merge are PeftModel's.
        object.__setattr__(layer, "_audited_model", model)
        return adapted

    def detach(self, adapted: Adapted) -> nn.Linear:
        """``unload``; of a layer in a whole model, the base layer that ``unload`` puts back there."""
        tuner: Any = adapted.module
        if not hasattr(tuner, "_audited_model"):
            return tuner.get_base_layer()
        return tuner._audited_model.unload().layer

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """PEFT on a whole model in place; module name -> tuner layer, in module order.

        Raises Unsupported where PEFT has no tuner for the kind of layer (HRA and DeLoRA on GPT-2's Conv1D).
        """
        import peft

        config = BINDINGS[spec.variant].config(spec, list(targets) if targets is not None else [])
        if targets is None:
            config.target_modules = None
            if hasattr(config, "feedforward_modules"):
                config.feedforward_modules = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tuned = peft.get_peft_model(model, config)
            except TypeError as error:
                raise Unsupported(f"PEFT: {error}") from error
        object.__setattr__(model, "_audited_model", tuned)
        return layers_of(tuned, spec)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """The tuner's layer file and the method that carries the aspect."""
        return SOURCES.get((variant, aspect)) or SOURCES.get((variant, "forward"))


def layers_of(tuned: peft.PeftModel, spec: AdapterSpec) -> dict[str, Adapted]:
    """Module name -> tuner layer of a whole model, in module order."""
    import peft

    return {
        name: Adapted(layer, slots_of(layer, _sided(layer, spec)))
        for name, layer in tuned.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
    }


def _sided(layer: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    side = getattr(layer, "is_feedforward", spec.feedforward)
    return dataclasses.replace(spec, feedforward=bool(side))


_TUNERS = Path(str(getattr(find_spec("peft"), "origin", ""))).parent / "tuners"
_LORA, _DORA = _TUNERS / "lora/layer.py", _TUNERS / "lora/dora.py"
_IA3, _HRA, _DELORA = (_TUNERS / f"{name}/layer.py" for name in ("ia3", "hra", "delora"))
SOURCES: dict[tuple[str, str], tuple[Path, str]] = {
    ("lora", "shapes"): (_LORA, "LoraLayer.update_layer"),
    ("lora", "init"): (_LORA, "LoraLayer.reset_lora_parameters"),
    ("lora", "forward"): (_LORA, "Linear.forward"),
    ("pissa", "shapes"): (_LORA, "LoraLayer.update_layer"),
    ("pissa", "init"): (_LORA, "LoraLayer.pissa_init"),
    ("pissa", "forward"): (_LORA, "Linear.forward"),
    ("dora", "shapes"): (_DORA, "DoraLinearLayer.update_layer"),
    ("dora", "init"): (_DORA, "DoraLinearLayer.update_layer"),
    ("dora", "forward"): (_DORA, "DoraLinearLayer.forward"),
    ("ia3", "shapes"): (_IA3, "IA3Layer.update_layer"),
    ("ia3", "init"): (_IA3, "IA3Layer.reset_ia3_parameters"),
    ("ia3", "forward"): (_IA3, "Linear.forward"),
    ("hra", "shapes"): (_HRA, "HRALayer.update_layer"),
    ("hra", "init"): (_HRA, "HRALayer.reset_hra_parameters"),
    ("hra", "forward"): (_HRA, "HRALinear.forward"),
    ("delora", "shapes"): (_DELORA, "DeloraLayer.update_layer"),
    ("delora", "init"): (_DELORA, "DeloraLayer.reset_delora_parameters"),
    ("delora", "forward"): (_DELORA, "DeloraLinear.forward"),
}
__all__ = ["BINDINGS", "OneLayer", "Peft"]

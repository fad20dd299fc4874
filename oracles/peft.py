"""HF PEFT, as installed, through its public API: ``get_peft_model`` on a one-layer model.

Each variant's record says how PEFT's config is made from an AdapterSpec, and where PEFT keeps each canonical tensor.
Nothing here computes anything. PEFT itself is imported where it is called: it takes seconds, and a process
that only collects what others find never needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Unsupported
from oracles.oracle import Kind, Oracle
from oracles.peft_layers import BINDINGS, OneLayer, layers_of, slots_of
from oracles.peft_lifecycle import Lifecycle
from oracles.variants import VARIANTS

if TYPE_CHECKING:
    import peft


def _whole(model: nn.Module) -> Any:
    """The PeftModel around an adapted model; raises Unsupported for a model that PEFT has not adapted."""
    tuned = vars(model).get("_audited_model")
    if tuned is None:
        raise Unsupported("PEFT has not adapted this model")
    return tuned


class Peft(Lifecycle, Oracle):
    """The installed PEFT release, as an oracle and as a subject."""

    kind: Kind = "library"
    name = "peft"
    version = version("peft")
    variants = frozenset(BINDINGS)

    def _wrap(self, base: nn.Linear, spec: AdapterSpec) -> peft.PeftModel:
        import peft

        config = BINDINGS[spec.variant].config(spec, ["layer"])
        return peft.get_peft_model(OneLayer(base), config)  # what it warns of is part of what it does

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` inside a PEFT tuner layer; the adapter is called "default"."""
        return self._adapted(self._wrap(base, spec), spec)

    def evaluator(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The adapter on a base of any dtype, for parameters that are written into it afterwards.

        PEFT factorises PiSSA in half or single precision only; its forward is LoRA's on the residual weight, so
        a float64 evaluation starts as LoRA, with PiSSA's start written into it and the base weight in a slot.
        """
        other = BINDINGS[spec.variant].evaluated_as
        if other is None or base.weight.dtype != torch.float64:
            return self.adapt(base, spec)
        start = VARIANTS[spec.variant].form.initial(base.weight.detach().clone(), spec)
        adapted = self.adapt(base, dataclasses.replace(spec, variant=other))
        slots = slots_of(adapted.module, spec)
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
        for name in BINDINGS[spec.variant].defaults if targets is None else ():
            setattr(config, name, None)
        try:
            tuned = peft.get_peft_model(model, config)
        except TypeError as error:
            raise Unsupported(f"PEFT: {error}") from error
        object.__setattr__(model, "_audited_model", tuned)
        return layers_of(tuned, spec)

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        """``PeftModel.from_pretrained`` around the model, whose layers it replaces in place, trainable.

        The layers come without slots: a file is of any method that PEFT has.
        """
        import peft

        tuned = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()
        object.__setattr__(model, "_audited_model", tuned)
        return {
            name: Adapted(layer, {})
            for name, layer in tuned.base_model.model.named_modules()
            if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
        }

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """``PeftModel.save_pretrained``."""
        _whole(model).save_pretrained(str(folder))

    def merge_model(self, model: nn.Module) -> nn.Module:
        """``merge_and_unload(safe_merge=True)``; one layer alone is merged without, so that both ways are asked."""
        return _whole(model).merge_and_unload(safe_merge=True)

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """The tuner's layer file and the method that carries the aspect."""
        sources = BINDINGS[variant].sources
        file, symbol = sources.get(aspect, sources["forward"])
        return TUNERS / file, symbol


TUNERS = Path(str(getattr(find_spec("peft"), "origin", ""))).parent / "tuners"
__all__ = ["BINDINGS", "OneLayer", "Peft"]

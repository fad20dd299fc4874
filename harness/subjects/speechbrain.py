# /// script
# requires-python = ">=3.11"
# dependencies = ["speechbrain==1.1.2", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# [tool.uv]
# exclude-dependencies = ["torchaudio"]
# ///
"""SpeechBrain 1.1.2: ``AdaptedModel`` with its LoRA."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# SpeechBrain imports torchaudio before anything else; its adapters call none of it.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")

import speechbrain  # noqa: E402
from speechbrain.nnet import adapters  # noqa: E402
from torch import nn  # noqa: E402

del sys.modules["torchaudio"]  # transformers looks whether it is there

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported  # noqa: E402

SYMBOLS = {"shapes": "LoRA.__init__", "init": "LoRA.__init__", "scale": "LoRA.__init__", "forward": "LoRA.forward",
           "save_load": "AdaptedModel.saver", "targets": "AdaptedModel.__init__"}  # fmt: skip


class SpeechBrain(Implementation):
    """``speechbrain.nnet.adapters.LoRA``, put into a model by ``AdaptedModel``; its factors are float32."""

    name = "speechbrain"
    version = speechbrain.__version__
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "conv2d"})
    dtypes = frozenset({"float32"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has neither dropout nor rsLoRA."""
        return dataclasses.replace(spec, dropout=0.0, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """A model that is ``base`` alone, adapted."""
        if getattr(base, "groups", 1) != 1:
            raise Unsupported("SpeechBrain's LoRA refuses convolutions with groups")
        return self._wrapped(nn.ModuleDict({"layer": base}), spec, ["layer"])["layer"]

    def _wrapped(self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str]) -> dict[str, Adapted]:
        if spec.dropout or spec.rslora:
            raise Unsupported("SpeechBrain's LoRA has neither dropout nor rsLoRA")
        mode = model.training and all(m.training for m in model.children())
        options = {"rank": spec.rank, "alpha": spec.alpha}
        whole = adapters.AdaptedModel(
            model, adapters.LoRA, target_layers=list(targets), adapter_kwargs=options
        ).train(mode)
        found = {n: m for n, m in model.named_modules() if isinstance(m, adapters.LoRA)}
        for layer in found.values():
            object.__setattr__(layer, "_audited_model", whole)  # saving is the model's
        return {name: _adapted(layer) for name, layer in found.items()}

    def save(self, adapted: Adapted, path: Path) -> None:
        """``AdaptedModel.saver``, which its Checkpointer calls."""
        model: Any = adapted.module._audited_model
        model.saver(path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``AdaptedModel.loader`` of a model that is adapted afresh."""
        adapted = self.adapt(base, spec)
        model: Any = adapted.module._audited_model
        model.loader(path, True)
        return adapted

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``AdaptedModel`` with wildcards for the ends of names; it has no targets of its own."""
        if targets is None:
            raise Unsupported("SpeechBrain's AdaptedModel adapts what it is told and has no default targets")
        return self._wrapped(model, spec, [p for t in targets for p in (t, f"*.{t}")])

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``nnet/adapters.py``."""
        return (Path(adapters.__file__), SYMBOLS[aspect]) if aspect in SYMBOLS else None


def _adapted(layer: Any) -> Adapted:
    return Adapted(
        layer, {"A": Slot(layer.adapter_down_proj.weight), "B": Slot(layer.adapter_up_proj.weight)}
    )

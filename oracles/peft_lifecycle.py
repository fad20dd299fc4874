"""What PEFT offers beyond one fresh adapter: several by name, folding in and out, whole checkpoints, other layers.

:class:`Lifecycle` is a mixin of :class:`oracles.peft.Peft`. All of it goes through PEFT's public API.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Unsupported
from oracles.peft_layers import BINDINGS, FIRST, OneLayer, slots_of
from oracles.variants import VARIANTS


@dataclass(frozen=True)
class Named(Adapted):
    """A handle that knows which of its layer's adapters it is."""

    adapter: str = FIRST


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT's warnings are for its users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def name_of(adapted: Adapted) -> str:
    """The adapter of a handle."""
    return adapted.adapter if isinstance(adapted, Named) else FIRST


def model_of(adapted: Adapted) -> Any:
    """The PeftModel that a one-layer handle belongs to. Raises Unsupported for a layer of a whole model."""
    model = getattr(adapted.module, "_audited_model", None)
    if model is None:
        raise Unsupported("PEFT does this on whole models: the layer has been adapted with its model")
    return model


class Lifecycle:
    """PEFT's methods for the life of an adapter."""

    layers = frozenset({"linear", "conv1d", "embedding", "conv2d", "quantised"})

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        """``PeftModel.add_adapter``."""
        with quiet():
            model_of(adapted).add_adapter(name, BINDINGS[spec.variant].config(spec, ["layer"]))
        return Named(adapted.module, slots_of(adapted.module, spec, name), name)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``PeftModel.set_adapter``, or with several ``base_model``'s; none of them: what ``disable_adapter`` does."""
        model = model_of(adapted)
        with quiet():
            if not names:
                model.base_model.disable_adapter_layers()
                return
            if len(names) == 1:
                model.set_adapter(names[0])
            else:
                model.base_model.set_adapter(list(names))
            model.base_model.enable_adapter_layers()

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        """``PeftModel.delete_adapter``."""
        with quiet():
            model_of(adapted).delete_adapter(name)

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_adapter``."""
        with quiet():
            model_of(adapted).merge_adapter()

    def unmerge(self, adapted: Adapted) -> None:
        """``unmerge_adapter``."""
        with quiet():
            model_of(adapted).unmerge_adapter()

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_and_unload`` of a copy: PEFT's own takes the adapted model apart."""
        with quiet():
            return copy.deepcopy(model_of(adapted)).merge_and_unload().layer

    def save(self, adapted: Adapted, path: Path) -> None:
        """``PeftModel.save_pretrained`` of one adapter into ``path``; PEFT puts all but "default" into a subfolder."""
        with quiet():
            model_of(adapted).save_pretrained(path, selected_adapters=[name_of(adapted)])

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``PeftModel.from_pretrained`` on a fresh base, trainable; what it warns of is heard."""
        import peft

        model = peft.PeftModel.from_pretrained(OneLayer(base), folder_in(path), is_trainable=True)
        return self._adapted(model, spec)

    def _adapted(self, model: Any, spec: AdapterSpec) -> Adapted:
        raise NotImplementedError  # Peft's


def folder_in(path: Path) -> Path:
    """Where under ``path`` an adapter was saved: PEFT makes a subfolder of an adapter's name."""
    found = sorted(path.glob("*/adapter_config.json"))
    return found[0].parent if found and not (path / "adapter_config.json").is_file() else path


def spec_in(folder: Path) -> AdapterSpec:
    """The spec that a checkpoint's ``adapter_config.json`` states. Raises Unsupported for a method without a record."""
    told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = (v.peft.reads(told) for v in VARIANTS.values() if v.peft is not None)
    spec = next((s for s in found if s is not None), None)
    if spec is None:
        raise Unsupported(f"{folder.name} is of {told['peft_type']}, which is none of {', '.join(VARIANTS)}")
    return spec

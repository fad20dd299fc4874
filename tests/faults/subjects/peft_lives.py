"""A PEFT release with all that the audit can ask of it: several adapters, folding, other kinds of layers, whole files.

`harness/subjects/peft_release.py` has what a fresh layer needs; the reports of `tests/faults/faults.toml` are mostly
about what comes after.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported

# Taken off again: other files there have libraries' names.
sys.path.append(str(Path(__file__).parents[3] / "harness" / "subjects"))
import peft_release
from peft_release import BINDINGS, OneLayer, Peft

sys.path.pop()

FIRST = "default"
VERA = {
    "A": "vera_A.default",
    "B": "vera_B.default",
    "d": "vera_lambda_d.default",
    "b": "vera_lambda_b.default",
}
BINDINGS.setdefault("vera", ("VeraConfig", {"r": "rank", "vera_dropout": "dropout"}, {}, VERA))
CONFIGS = {
    "LORA": "LoraConfig",
    "IA3": "IA3Config",
    "VERA": "VeraConfig",
    "HRA": "HRAConfig",
    "DELORA": "DeloraConfig",
}


@dataclasses.dataclass(frozen=True)
class Named(Adapted):
    """A handle that knows which of its layer's adapters it is."""

    adapter: str = FIRST


def _name(adapted: Adapted) -> str:
    return adapted.adapter if isinstance(adapted, Named) else FIRST


def _model(adapted: Adapted) -> Any:
    found = getattr(adapted.module, "_audited_model", None)
    if found is None:
        raise Unsupported("PEFT does this on whole models: the layer has been adapted with its model")
    return found


def _several(model: Any) -> bool:
    """Whether this release can have more than one adapter active (from 0.6 on)."""
    return hasattr(type(model.base_model), "active_adapters")


class PeftLives(Peft):
    """The PEFT release that is installed here, asked for its adapters' whole life."""

    variants = peft_release._offered()
    layers = frozenset({"linear", "conv1d", "embedding", "conv2d"})

    def config(self, spec: AdapterSpec, targets: Any) -> Any:
        """The release's configuration for a spec; what only one method knows comes from the spec's options."""
        found = super().config(spec, targets)
        for option, value in spec.options.items():
            if not hasattr(found, option):
                raise Unsupported(f"PEFT {peft.__version__} has no {option}")
            setattr(found, option, value)
        return found

    def adapted(self, model: Any, spec: AdapterSpec, name: str = FIRST) -> Adapted:
        """One of a tuner layer's adapters."""
        layer = model.base_model.model.layer
        object.__setattr__(layer, "_audited_model", model)
        return Named(layer, _slots(layer, spec, name), name)

    def detach(self, adapted: Adapted) -> nn.Linear:
        """``unload``, or what a release that lacks it has of the base."""
        if hasattr(adapted.module, "_audited_model") and not hasattr(_model(adapted).base_model, "unload"):
            raise Unsupported(f"PEFT {peft.__version__} has no unload for this method")
        return super().detach(adapted)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_and_unload`` of a copy: PEFT's own takes the adapted model apart."""
        model = _model(adapted)
        with _quiet():
            return copy.deepcopy(model).merge_and_unload().layer

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        """``PeftModel.add_adapter``."""
        with _quiet():
            _model(adapted).add_adapter(name, self.config(spec, ["layer"]))
        return self.adapted(_model(adapted), spec, name)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``set_adapter``, of the tuner where there are several; none: what ``disable_adapter`` does."""
        model = _model(adapted)
        tuner = model.base_model
        with _quiet():
            if not names:
                tuner.disable_adapter_layers()
                return
            if unknown := [name for name in names if name not in model.peft_config]:
                raise ValueError(f"Adapter {unknown[0]} not found.")
            if len(names) > 1 and not _several(model):
                raise Unsupported(f"PEFT {peft.__version__} has one active adapter")
            if len(names) == 1:
                model.set_adapter(names[0])
            else:
                tuner.set_adapter(list(names))
            tuner.enable_adapter_layers()

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        """``PeftModel.delete_adapter``, or the tuner's."""
        model = _model(adapted)
        owner = model if hasattr(type(model), "delete_adapter") else model.base_model
        if not hasattr(type(owner), "delete_adapter"):
            raise Unsupported(f"PEFT {peft.__version__} deletes no adapter of this method")
        with _quiet():
            owner.delete_adapter(name)

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_adapter``."""
        tuner = _model(adapted).base_model
        if not hasattr(tuner, "merge_adapter"):
            raise Unsupported(f"PEFT {peft.__version__} merges in place with no adapter of this method")
        with _quiet():
            tuner.merge_adapter()

    def unmerge(self, adapted: Adapted) -> None:
        """``unmerge_adapter``."""
        with _quiet():
            _model(adapted).base_model.unmerge_adapter()

    def save(self, adapted: Adapted, path: Path) -> None:
        """``save_pretrained`` of one adapter; PEFT puts all but "default" into a subfolder."""
        with _quiet():
            _model(adapted).save_pretrained(
                str(path), safe_serialization=True, selected_adapters=[_name(adapted)]
            )

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``PeftModel.from_pretrained`` on a fresh base, trainable."""
        found = sorted(Path(path).glob("*/adapter_config.json"))
        own = (Path(path) / "adapter_config.json").is_file()
        folder = found[0].parent if found and not own else path
        with _quiet():
            model = peft.PeftModel.from_pretrained(OneLayer(base), str(folder), is_trainable=True)
        return self.adapted(model, spec)

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``get_peft_model`` on a whole model, in place; what the release has no tuner for is not offered."""
        try:
            found: Mapping[str, Adapted] = super().adapt_model(model, spec, targets)
        except TypeError as error:
            raise Unsupported(f"PEFT: {error}") from error
        return found

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        """``PeftModel.from_pretrained`` around the model; the layers come without slots.

        Raises Unsupported for a configuration with an option that this release has not.
        """
        with _quiet(), tempfile.TemporaryDirectory() as place:
            readable = _readable(folder, Path(place))
            tuned = peft.PeftModel.from_pretrained(model, str(readable), is_trainable=True).eval()
        object.__setattr__(model, "_audited_model", tuned)
        return {
            name: Adapted(layer, {})
            for name, layer in tuned.base_model.model.named_modules()
            if hasattr(layer, "active_adapter") and hasattr(layer, "merge")
        }

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """``save_pretrained``."""
        with _quiet():
            _whole(model).save_pretrained(str(folder), safe_serialization=True)

    def merge_model(self, model: nn.Module) -> nn.Module:
        """``merge_and_unload``, safely where the release offers that; one layer alone is merged without."""
        merge = _whole(model).base_model.merge_and_unload
        safe = {"safe_merge": True} if "safe_merge" in inspect.signature(merge).parameters else {}
        with _quiet():
            merged: nn.Module = merge(**safe)
        return merged


def _whole(model: nn.Module) -> Any:
    tuned = vars(model).get("_audited_model")
    if tuned is None:
        raise Unsupported("PEFT has not loaded this model's adapter")
    return tuned


def _readable(folder: Path, place: Path) -> Path:
    """A copy of a checkpoint without the options that this release has not, where the file has them off."""
    copied = shutil.copytree(folder, place / "checkpoint")
    file = copied / "adapter_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = peft_release._fields(CONFIGS.get(str(told.get("peft_type", "")), ""))
    if not known:
        return copied
    if unknown := sorted(name for name, value in told.items() if name not in known and value):
        raise Unsupported(f"PEFT {peft.__version__} has no {', '.join(unknown)}")
    file.write_text(json.dumps({n: v for n, v in told.items() if n in known}), encoding="utf-8")
    return copied


class _quiet(warnings.catch_warnings):  # noqa: N801
    """PEFT's warnings are for its users."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found


def _slots(layer: Any, spec: AdapterSpec, adapter: str) -> dict[str, Slot]:
    """The canonical tensors of one adapter; on other kinds of layers in PEFT's own shapes."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    slots = {}
    for name, path in BINDINGS[spec.variant][3].items():
        tensor = peft_release._resolve(layer, _path(path, base, adapter))
        if tensor is None:
            continue
        if isinstance(base, (nn.Embedding, nn.Conv2d)):
            slots[name] = Slot(tensor)
        elif name == "l":
            slots[name] = Slot(tensor, peft_release._gate(spec))
        elif spec.variant == "vera" and name in "AB":
            slots[name] = Slot(tensor, _part(base, spec, name))
        else:
            slots[name] = peft_release._magnitude(tensor) if name == "m" else Slot(tensor)
    return slots


def _path(path: str, base: nn.Module, adapter: str) -> str:
    own = path.replace(FIRST, adapter)
    if isinstance(base, nn.Embedding) and own.startswith(("lora_A.", "lora_B.")):
        return own.replace("lora_", "lora_embedding_").removesuffix(".weight")
    return own


def _part(base: Any, spec: AdapterSpec, name: str) -> Any:
    """What a layer uses of VeRA's shared matrices."""
    in_features, out_features = base.in_features, base.out_features

    def view(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, :in_features] if name == "A" else tensor[:out_features]

    return view

"""HF PEFT of any release from 0.4 on, through the public API that all of them have; `--subject peft@X.Y.Z`.

It stands alone, so that it runs beside the release it is about. What a release lacks, a tuner, an option, is not
offered, which follows from that release's own configuration classes.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

NUMBERS = tuple(int(n) for n in re.findall(r"\d+", peft.__version__))
# variant -> (the configuration's class, its arguments from a spec, where the tuner layer keeps each canonical tensor)
FACTORS = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
LORA = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
BINDINGS: dict[str, tuple[str, dict[str, str], dict[str, Any], dict[str, str]]] = {
    "lora": ("LoraConfig", LORA, {}, FACTORS),
    "pissa": ("LoraConfig", LORA, {"init_lora_weights": "pissa"}, {**FACTORS, "W": "base_layer.weight"}),
    "dora": ("LoraConfig", LORA, {"use_dora": True}, {**FACTORS, "m": "lora_magnitude_vector.default"}),
    "ia3": ("IA3Config", {}, {}, {"l": "ia3_l.default"}),
    "hra": ("HRAConfig", {"r": "rank", "apply_GS": "gram_schmidt"}, {}, {"U": "hra_u.default"}),
    "delora": (
        "DeloraConfig",
        {"r": "rank", "delora_lambda": "lambda0", "module_dropout": "dropout"},
        {},
        {"A": "delora_A.default", "B": "delora_B.default", "lambda": "delora_lambda.default",
         "w_norm": "delora_w_norm.default"},
    ),
    "vera": (
        "VeraConfig",
        {"r": "rank", "vera_dropout": "dropout"},
        {},
        {"A": "vera_A.default", "B": "vera_B.default", "d": "vera_lambda_d.default", "b": "vera_lambda_b.default"},
    ),
}  # fmt: skip


def _fields(name: str) -> set[str]:
    """The options that this release's configuration has; none where it has no such class."""
    kind = getattr(peft, name, None)
    return {f.name for f in dataclasses.fields(kind)} if kind is not None else set()


def _offered() -> frozenset[str]:
    found = {
        variant
        for variant, (config, _, fixed, _) in BINDINGS.items()
        if set(fixed) <= _fields(config) != set()
    }
    # Before 0.10 `init_lora_weights` was a switch that took any text for yes.
    if "use_dora" not in _fields("LoraConfig") or not _documents("LoraConfig", "pissa"):
        found -= {"pissa"}
    return frozenset(found)


def _documents(config: str, word: str) -> bool:
    return word in inspect.getsource(inspect.getmodule(getattr(peft, config)) or peft).lower()


CONFIGURATIONS = {variant.upper(): config for variant, (config, *_) in BINDINGS.items()}  # by PEFT's type
# Options that say something only where another one is on, and what wrote the file.
WITHOUT_EFFECT = {"megatron_core", "peft_version", "qalora_group_size"}
CUSTOM = {"model_type": "custom"}  # releases before 0.6 ask every model for its configuration
FIRST = "default"  # what PEFT calls the first adapter


@dataclass(frozen=True)
class Named(Adapted):
    """A handle that knows which of its layer's adapters it is."""

    adapter: str = FIRST


class OneLayer(nn.Module):
    """A model that is one linear layer: PEFT adapts models, the audit compares layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        # What transformers sets on a model whose layers bitsandbytes has quantised, and PEFT asks for.
        self.is_loaded_in_4bit = type(layer).__name__ == "Linear4bit"
        self.is_loaded_in_8bit = type(layer).__name__ == "Linear8bitLt"
        if NUMBERS < (0, 6):
            self.config = CUSTOM

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Peft(Implementation):
    """The PEFT release that is installed here."""

    name = "peft"
    version = peft.__version__
    variants = _offered()
    layers = frozenset({"linear", "conv1d", "embedding", "conv2d", "quantised"})
    further: ClassVar[Mapping[str, Any]] = {}  # options that are on, whatever the spec

    def config(self, spec: AdapterSpec, targets: Any) -> Any:
        """The release's configuration for a spec. Raises Unsupported for an option that it lacks."""
        name, options, fixed, _ = BINDINGS[spec.variant]
        fixed = {**fixed, **self.further}
        kind = getattr(peft, name, None)
        if kind is None:
            raise Unsupported(f"PEFT {peft.__version__} has no {name}")
        values = {option: getattr(spec, field) for option, field in options.items()}
        if spec.rslora:
            values["use_rslora"] = True
        values |= dict(spec.options) if spec.variant == "vera" else {}  # the others' specs say it all
        lacking = sorted((set(values) | set(fixed)) - _fields(name))
        if lacking:
            raise Unsupported(f"PEFT {peft.__version__} has no {', '.join(lacking)} in its {name}")
        if spec.variant == "ia3":
            values["feedforward_modules"] = targets if spec.feedforward and targets is not None else []
            if targets is None:
                values["feedforward_modules"] = None
        return kind(target_modules=targets, **values, **fixed)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` inside a PEFT tuner layer; the adapter is called "default"."""
        config = self.config(spec, ["layer"])
        return self.adapted(peft.get_peft_model(OneLayer(base), config), spec)

    def adapted(self, model: Any, spec: AdapterSpec) -> Adapted:
        """The tuner layer; the model goes with it, since save and merge are the model's."""
        layer = model.base_model.model.layer
        object.__setattr__(layer, "_audited_model", model)
        return Adapted(layer, self.slots(layer, spec))

    def slots(self, layer: Any, spec: AdapterSpec, adapter: str = FIRST) -> dict[str, Slot]:
        """The tensors of one of a tuner layer's adapters."""
        return _slots(layer, spec, adapter)

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        """``PeftModel.add_adapter``."""
        model_of(adapted).add_adapter(name, self.config(spec, ["layer"]))
        return Named(adapted.module, self.slots(adapted.module, spec, name), name)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``PeftModel.set_adapter``, or with several ``base_model``'s; none of them: what ``disable_adapter`` does.

        Raises Unsupported for several, where this release's layers have one active adapter.
        """
        model = model_of(adapted)
        if len(names) > 1 and not hasattr(type(model.base_model), "active_adapters"):
            raise Unsupported(f"PEFT {peft.__version__} has one active adapter")
        if not names:
            tuner_method(model, "disable_adapter_layers")()
            return
        if len(names) == 1:
            model.set_adapter(names[0])
        else:
            tuner_method(model, "set_adapter")(list(names))
        tuner_method(model, "enable_adapter_layers")()

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        """``PeftModel.delete_adapter``; before that, the tuner's own."""
        model = model_of(adapted)
        own = getattr(type(model), "delete_adapter", None)
        model.delete_adapter(name) if own else tuner_method(model, "delete_adapter")(name)

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_adapter``."""
        tuner_method(model_of(adapted), "merge_adapter")()

    def unmerge(self, adapted: Adapted) -> None:
        """``unmerge_adapter``."""
        tuner_method(model_of(adapted), "unmerge_adapter")()

    def save(self, adapted: Adapted, path: Path) -> None:
        """``save_pretrained`` of one adapter, as safetensors; all but "default" go into a subfolder."""
        name = adapted.adapter if isinstance(adapted, Named) else FIRST
        model_of(adapted).save_pretrained(str(path), safe_serialization=True, selected_adapters=[name])

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``PeftModel.from_pretrained`` on a fresh base, trainable."""
        within = sorted(path.glob("*/adapter_config.json"))
        folder = within[0].parent if within and not (path / "adapter_config.json").is_file() else path
        model = peft.PeftModel.from_pretrained(OneLayer(base), str(folder), is_trainable=True)
        return self.adapted(model, spec)

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        """``PeftModel.from_pretrained`` around the model, whose layers it replaces in place, trainable.

        The layers come without slots: a file is of any method that PEFT has.
        """
        if NUMBERS < (0, 6) and not hasattr(model, "config"):
            model.config = CUSTOM  # type: ignore[assignment]
        with known_options(folder) as readable:
            tuned = peft.PeftModel.from_pretrained(model, str(readable), is_trainable=True).eval()
        object.__setattr__(model, "_audited_model", tuned)
        return {name: Adapted(layer, {}) for name, layer in tuner_layers(tuned)}

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """``PeftModel.save_pretrained``."""
        whole(model).save_pretrained(str(folder), safe_serialization=True)

    def merge_model(self, model: nn.Module) -> nn.Module:
        """``merge_and_unload(safe_merge=True)``, where the release has that; one layer alone is merged without."""
        merging = tuner_method(whole(model), "merge_and_unload")
        safe = "safe_merge" in inspect.signature(merging).parameters
        merged: nn.Module = merging(safe_merge=True) if safe else merging()
        return merged

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_and_unload`` of a copy: PEFT's own takes the adapted model apart."""
        found: nn.Linear = copy.deepcopy(model_of(adapted)).merge_and_unload().layer
        return found

    def detach(self, adapted: Adapted) -> nn.Linear:
        """``unload``; of a layer in a whole model, its base layer."""
        tuner: Any = adapted.module
        if not hasattr(tuner, "_audited_model"):
            if hasattr(tuner, "get_base_layer"):
                return tuner.get_base_layer()
            raise Unsupported(f"PEFT {peft.__version__} shows no base layer of one tuner layer")
        if not hasattr(tuner._audited_model.base_model, "unload"):
            raise Unsupported(f"PEFT {peft.__version__} cannot take {type(tuner).__module__} off again")
        return tuner._audited_model.unload().layer

    def adapt_model(self, model: nn.Module, spec: AdapterSpec, targets: Any = None) -> Any:
        """``get_peft_model`` on a whole model, in place.

        Raises Unsupported for kinds of layers and for architectures that came after this release.
        """
        config = self.config(spec, None if targets is None else list(targets))
        try:
            tuned = peft.get_peft_model(model, config)
        except TypeError as error:
            raise Unsupported(f"PEFT {peft.__version__}: {error}") from error
        except ValueError as error:
            # The other complaint is of defaults that name nothing in this model.
            if targets is not None or "specify" not in str(error):
                raise
            raise Unsupported(f"PEFT {peft.__version__} has no default targets here: {error}") from error
        object.__setattr__(model, "_audited_model", tuned)
        found = {}
        for name, layer in tuner_layers(tuned):
            side = bool(getattr(layer, "is_feedforward", spec.feedforward))
            found[name] = Adapted(layer, self.slots(layer, dataclasses.replace(spec, feedforward=side)))
        return found

    def source(self, variant: str, aspect: str) -> Any:
        """The tuner's file and the method that carries the aspect; None for an aspect that is none of its layer's."""
        folder = {"pissa": "lora", "dora": "lora"}.get(variant, variant)
        stem = {"ia3": "IA3", "hra": "HRA"}.get(folder, folder.capitalize())
        linear = f"{stem}Linear" if folder in ("hra", "delora") else "Linear"
        symbols = {
            **dict.fromkeys(("shapes", "init"), f"{stem}Layer.update_layer"),
            **dict.fromkeys(("forward", "scale", "dropout"), f"{linear}.forward"),
            "merge": f"{linear}.merge",
        }
        for file in (f"tuners/{folder}/layer.py", f"tuners/{folder}.py"):
            path = Path(peft.__file__).parent / file
            if path.is_file() and aspect in symbols:
                return path, symbols[aspect]
        return None


class WithLoraBias(Peft):
    """``lora_bias=True``: the second factor has a bias, y = x Wᵀ + b + (α/r) (x Aᵀ Bᵀ + c). Since 0.14."""

    variants = frozenset({"lora"}) if "lora_bias" in _fields("LoraConfig") else frozenset()
    further: ClassVar[Mapping[str, Any]] = {"lora_bias": True}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """As without, of a layer that has a bias. Raises Unsupported for one that has none."""
        if getattr(base, "bias", None) is None:
            raise Unsupported("PEFT merges lora_bias only into a layer that has a bias")
        return super().adapt(base, spec)

    def slots(self, layer: Any, spec: AdapterSpec, adapter: str = FIRST) -> dict[str, Slot]:
        """The factors' bias among them, under its own name."""
        return {**super().slots(layer, spec, adapter), "lora_bias": Slot(layer.lora_B[adapter].bias)}


def model_of(adapted: Adapted) -> Any:
    """The PeftModel that a one-layer handle belongs to. Raises Unsupported for a layer of a whole model."""
    model = getattr(adapted.module, "_audited_model", None)
    if model is None:
        raise Unsupported("PEFT does this on whole models: the layer has been adapted with its model")
    return model


def whole(model: nn.Module) -> Any:
    """The PeftModel around an adapted model; raises Unsupported for a model that PEFT has not adapted."""
    tuned = vars(model).get("_audited_model")
    if tuned is None:
        raise Unsupported("PEFT has not adapted this model")
    return tuned


@contextmanager
def known_options(folder: Path) -> Iterator[Path]:
    """The folder of an adapter without the options that are off and that came after this release.

    Releases up to 0.13 stop at any option that they do not know, and newer ones write all that they have. Raises
    Unsupported where one of those is on: no release can read what came after it.
    """
    told = _told(folder)
    config = CONFIGURATIONS.get(told.get("peft_type", ""))
    known = _fields(config) if config else set(told)  # of another method, PEFT itself has to say something
    if not known:
        raise Unsupported(f"PEFT {peft.__version__} has no {config}")
    later = {name: value for name, value in told.items() if name not in known}
    on = sorted(n for n, v in later.items() if v not in (None, False, "", [], {}) and n not in WITHOUT_EFFECT)
    if on:
        raise Unsupported(f"PEFT {peft.__version__} has no {', '.join(on)}")
    if not later:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        copied = Path(shutil.copytree(folder, Path(place) / folder.name))
        less = {name: value for name, value in told.items() if name in known}
        (copied / "adapter_config.json").write_text(json.dumps(less), encoding="utf-8")
        yield copied


def _told(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration file says; nothing, where it cannot be read."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tuner_method(model: Any, name: str) -> Any:
    """A method of the tuner around the model. Raises Unsupported where this release's has none."""
    tuner = model.base_model
    if getattr(type(tuner), name, None) is None:
        raise Unsupported(f"PEFT {peft.__version__} has no {name} in its {type(tuner).__name__}")
    return getattr(tuner, name)


def tuner_layers(tuned: Any) -> Iterator[tuple[str, Any]]:
    """Module name and tuner layer of a whole model, in module order."""
    stems = {path.partition(".")[0] for *_, paths in BINDINGS.values() for path in paths.values()}
    stems -= {"base_layer"}
    for name, layer in tuned.base_model.model.named_modules():
        if stems & (set(layer._modules) | set(layer._parameters)):
            yield name, layer


def base_of(layer: Any) -> Any:
    """The layer that is adapted; before 0.6 the tuner layer was that layer's subclass."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _slots(layer: Any, spec: AdapterSpec, adapter: str) -> dict[str, Slot]:
    slots = {}
    for name, path in BINDINGS[spec.variant][3].items():
        tensor = _resolve(layer, _of_kind(layer, path).replace(FIRST, adapter))
        if tensor is not None:
            slots[name] = _slot(name, tensor, layer, spec)
    return slots


def _slot(name: str, tensor: Tensor, layer: Any, spec: AdapterSpec) -> Slot:
    if isinstance(base_of(layer), (nn.Embedding, nn.Conv2d)):  # in PEFT's own shapes
        return Slot(tensor)
    if name == "l":
        return Slot(tensor, _gate(spec))
    if spec.variant == "vera" and name in "AB":  # the matrices that all layers share, as large as the largest
        used = layer.in_features if name == "A" else layer.out_features
        return Slot(tensor, (lambda t: t[:, :used]) if name == "A" else (lambda t: t[:used]))
    return _magnitude(tensor) if name == "m" else Slot(tensor)


def _of_kind(layer: Any, path: str) -> str:
    """Where a tensor lives on this kind of layer: an embedding's factors have names of their own."""
    if isinstance(base_of(layer), nn.Embedding) and path in FACTORS.values():
        return path.replace("lora_", "lora_embedding_").replace(".weight", "")
    return path


def _resolve(module: Any, path: str) -> Tensor | None:
    node = module
    if path == "base_layer.weight":
        return base_of(node).weight
    for part in path.split("."):
        try:
            node = (
                node[part]
                if isinstance(node, (nn.ModuleDict, nn.ParameterDict))
                else getattr(node, part, None)
            )
        except KeyError:
            return None
    found = getattr(node, "weight", node)  # DoRA's magnitude became a module of its own in 0.11
    return found if isinstance(found, torch.Tensor) else None


def _gate(spec: AdapterSpec) -> Any:
    return (lambda tensor: tensor[0]) if spec.feedforward else (lambda tensor: tensor[:, 0])


def _magnitude(tensor: Tensor) -> Slot:
    return Slot(tensor, lambda t: t.reshape(-1)) if tensor.dim() > 1 else Slot(tensor)

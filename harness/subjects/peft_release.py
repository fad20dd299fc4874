"""HF PEFT of any release from 0.4 on, through the public API that all of them have; `--subject peft@X.Y.Z`.

It stands alone, so that it runs beside the release it is about. What a release lacks, a tuner, an option, is not
offered, which follows from that release's own configuration classes.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import warnings
from collections.abc import Mapping
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


class OneLayer(nn.Module):
    """A model that is one linear layer: PEFT adapts models, the audit compares layers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        if NUMBERS < (0, 6):  # which ask every model for its configuration
            self.config = {"model_type": "custom"}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Peft(Implementation):
    """The PEFT release that is installed here."""

    name = "peft"
    version = peft.__version__
    variants = _offered()
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
        lacking = sorted((set(values) | set(fixed)) - _fields(name))
        if lacking:
            raise Unsupported(f"PEFT {peft.__version__} has no {', '.join(lacking)} in its {name}")
        if spec.variant == "ia3":
            values["feedforward_modules"] = targets if spec.feedforward and targets is not None else []
            if targets is None:
                values["feedforward_modules"] = None
        return kind(target_modules=targets, **values, **fixed)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` inside a PEFT tuner layer."""
        config = self.config(spec, ["layer"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.adapted(peft.get_peft_model(OneLayer(base), config), spec)

    def adapted(self, model: Any, spec: AdapterSpec) -> Adapted:
        """The tuner layer; the model goes with it, since save and merge are the model's."""
        layer = model.base_model.model.layer
        object.__setattr__(layer, "_audited_model", model)
        return Adapted(layer, self.slots(layer, spec))

    def slots(self, layer: Any, spec: AdapterSpec) -> dict[str, Slot]:
        """The adapter's tensors on a tuner layer."""
        return _slots(layer, spec)

    def save(self, adapted: Adapted, path: Path) -> None:
        """``save_pretrained``, as safetensors."""
        adapted.module._audited_model.save_pretrained(str(path), safe_serialization=True)  # type: ignore[union-attr, operator]

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``PeftModel.from_pretrained`` on a fresh base, trainable."""
        model = peft.PeftModel.from_pretrained(OneLayer(base), str(path), is_trainable=True)
        return self.adapted(model, spec)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``merge_and_unload`` of a copy: PEFT's own takes the adapted model apart."""
        model: Any = copy.deepcopy(adapted.module._audited_model)
        found: nn.Linear = model.merge_and_unload().layer
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tuned = peft.get_peft_model(model, config)
            except TypeError as error:
                raise Unsupported(f"PEFT {peft.__version__}: {error}") from error
            except ValueError as error:
                # The other complaint is of defaults that name nothing in this model.
                if targets is not None or "specify" not in str(error):
                    raise
                raise Unsupported(f"PEFT {peft.__version__} has no default targets here: {error}") from error
        found = {}
        for name, layer in tuned.base_model.model.named_modules():
            if next(iter(BINDINGS[spec.variant][3].values())).partition(".")[0] in layer._modules:
                side = bool(getattr(layer, "is_feedforward", spec.feedforward))
                found[name] = Adapted(layer, self.slots(layer, dataclasses.replace(spec, feedforward=side)))
        return found

    def source(self, variant: str, aspect: str) -> Any:
        """The tuner's layer and the method that carries the aspect, where this release has it."""
        folder = {"pissa": "lora", "dora": "lora"}.get(variant, variant)
        for file in (f"tuners/{folder}/layer.py", f"tuners/{folder}.py"):
            path = Path(peft.__file__).parent / file
            if path.is_file():
                return path, ("Linear.merge" if aspect == "merge" else "Linear.forward")
        return None


class WithLoraBias(Peft):
    """``lora_bias=True``: the second factor has a bias, y = x Wᵀ + b + (α/r) (x Aᵀ Bᵀ + c). Since 0.14."""

    variants = frozenset({"lora"}) if "lora_bias" in _fields("LoraConfig") else frozenset()
    further: ClassVar[Mapping[str, Any]] = {"lora_bias": True}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """As without, of a layer that has a bias. Raises Unsupported for one that has none."""
        if base.bias is None:
            raise Unsupported("PEFT merges lora_bias only into a layer that has a bias")
        return super().adapt(base, spec)

    def slots(self, layer: Any, spec: AdapterSpec) -> dict[str, Slot]:
        """The factors' bias among them, under its own name."""
        return {**super().slots(layer, spec), "lora_bias": Slot(layer.lora_B["default"].bias)}


def _slots(layer: Any, spec: AdapterSpec) -> dict[str, Slot]:
    slots = {}
    for name, path in BINDINGS[spec.variant][3].items():
        tensor = _resolve(layer, path)
        if tensor is None:
            continue
        slots[name] = (
            Slot(tensor, _gate(spec)) if name == "l" else _magnitude(tensor) if name == "m" else Slot(tensor)
        )
    return slots


def _resolve(module: Any, path: str) -> Tensor | None:
    node = module
    if path == "base_layer.weight":
        return getattr(node, "base_layer", node).weight
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

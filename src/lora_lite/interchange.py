"""PEFT's checkpoint format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT itself is not needed. What lora_lite has no counterpart for is refused, never dropped.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import checkpoint
from .adapter import adapters, install, make
from .config import AdapterConfig
from .variant import Variant, config_from_dict, is_linear
from .variants import IA3, PiSSA

__all__ = ["load_peft", "save_peft"]

PREFIX = "base_model.model."
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"

LORA_KEYS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "m"}
KEYS = {
    "LORA": LORA_KEYS,
    "IA3": {"ia3_l": "l"},
    "HRA": {"hra_u": "U"},
    "DELORA": {"delora_A": "A", "delora_B": "B", "delora_lambda": "lambda_", "delora_w_norm": "w_norm"},
}

# What each PEFT type's own fields are called here.
FIELDS: dict[str, dict[str, str]] = {
    "LORA": {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"},
    "IA3": {},
    "HRA": {"r": "rank", "apply_GS": "gram_schmidt"},
    "DELORA": {"r": "rank", "delora_lambda": "lambda0", "module_dropout": "dropout"},
}
# Fields that change what an adapter computes, with the values that lora_lite computes too.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "pissa", None),
}
PEFT_TYPE = {"lora": "LORA", "pissa": "LORA", "dora": "LORA", "ia3": "IA3", "hra": "HRA", "delora": "DELORA"}


def save_peft(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Write the adapters of ``model`` so that ``PeftModel.from_pretrained(base, folder)`` reads them.

    PiSSA is written as the plain LoRA of rank 2r that it amounts to on the original base (appendix C of its
    paper): B A - B₀ A₀. Raises ValueError for a model that is itself one layer, which PEFT cannot name.
    """
    found = adapters(model)
    configs = {adapter.config for adapter in found.values()}
    if len(configs) != 1 or "" in found:
        raise ValueError(f"expected a model with adapters of one configuration, got {len(configs)} of them")
    config = configs.pop()
    tensors = {
        f"{PREFIX}{name}.{key}": tensor.detach().cpu().contiguous().clone()
        for name, adapter in found.items()
        for key, tensor in _exported(adapter).items()
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _replace(target / FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(_peft_config(config, found), indent=2)
    _replace(target / CONFIG, lambda path: path.write_text(text))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, then move there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _exported(adapter: Variant) -> dict[str, Tensor]:
    """PEFT's key endings and tensors of one adapter."""
    own = dict(adapter.state_dict())
    if isinstance(adapter, PiSSA):
        own = {"A": torch.cat([own["A"], adapter.A0]), "B": torch.cat([own["B"], -adapter.B0], dim=1)}
    if isinstance(adapter, IA3):
        own["l"] = own["l"].view((1, -1) if adapter.feedforward else (-1, 1))
    keys = KEYS[PEFT_TYPE[adapter.Config.variant]]
    return {key: own[name] for key, name in keys.items() if name in own}


def _peft_config(config: AdapterConfig, found: dict[str, Variant]) -> dict[str, Any]:
    """The contents of adapter_config.json; layers by their full names."""
    kind = PEFT_TYPE[config.variant]
    data: dict[str, Any] = {"peft_type": kind, "inference_mode": True, "target_modules": list(found)}
    data |= {field: getattr(config, name) for field, name in FIELDS[kind].items()}
    if config.variant == "pissa":
        data |= {"r": 2 * data["r"], "lora_alpha": 2 * data["lora_alpha"]}
    if kind == "LORA":
        data |= {"use_dora": config.variant == "dora", "init_lora_weights": True, "bias": "none"}
    if kind == "IA3":
        data["feedforward_modules"] = [n for n, a in found.items() if isinstance(a, IA3) and a.feedforward]
    return data


def load_peft(model: nn.Module, folder: str | PathLike[str]) -> dict[str, Variant]:
    """Attach the adapters of a folder that PEFT's ``save_pretrained`` wrote; all or nothing, as ``load``.

    A model that is itself the layer takes a folder with one adapted layer. A PiSSA folder of PEFT's holds no
    trace of the residual; as PEFT does, the SVD is repeated on the base that is given. Raises ValueError for
    an option that lora_lite does not have, and for what ``load`` refuses.
    """
    data = _read_config(Path(folder) / CONFIG)
    config = _config(data)
    tensors = _read_tensors(Path(folder))
    chosen = {}
    for name, entry in _entries(model, data, tensors).items():
        layer = checkpoint.layer_for(model, name)
        adapter = make(name, layer, config, entry.options)
        _complete(adapter, layer, entry)
        checkpoint.check(name, entry, adapter, layer)
        adapter.restore(layer, entry.tensors)
        chosen[name] = adapter
    install(model, chosen)
    return chosen


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a readable PEFT configuration: {error}") from None
    if not isinstance(data, dict) or data.get("peft_type") not in KEYS:
        kind = data.get("peft_type") if isinstance(data, dict) else data
        raise ValueError(f"{str(path)!r} is for peft_type {kind!r}; lora_lite reads {', '.join(KEYS)}")
    for field, accepted in HARMLESS.items():
        if field in data and data[field] not in accepted:
            raise ValueError(f"{str(path)!r} has {field}={data[field]!r}, which lora_lite does not have")
    return data


def _config(data: dict[str, Any]) -> AdapterConfig:
    """The config of the same adapter."""
    kind = data["peft_type"]
    variant = kind.lower()
    if kind == "LORA":
        special = "pissa" if data.get("init_lora_weights") == "pissa" else "lora"
        variant = "dora" if data.get("use_dora") else special
    own = {name: data[field] for field, name in FIELDS[kind].items() if field in data}
    return config_from_dict({"variant": variant, **own})


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / FILE).is_file():
        hint = "; adapter_model.bin is a pickle, which is never opened" if any(folder.glob("*.bin")) else ""
        raise ValueError(f"{str(folder)!r} has no {FILE}{hint}")
    return checkpoint.read_safetensors(folder / FILE)[1]


def _entries(
    model: nn.Module, data: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, checkpoint.Entry]:
    """The tensors by layer, under lora_lite's names and in its shapes."""
    entries: dict[str, checkpoint.Entry] = {}
    for key, tensor in tensors.items():
        name, parameter = _split(key, KEYS[data["peft_type"]])
        entry = entries.setdefault(name, checkpoint.Entry())
        entry.tensors[parameter] = tensor
        if data["peft_type"] == "IA3":
            entry.tensors[parameter] = tensor.reshape(-1)
            entry.options["feedforward"] = _feedforward(name, data.get("feedforward_modules") or ())
    if is_linear(model) and len(entries) == 1:
        return {"": next(iter(entries.values()))}
    return entries


def _split(key: str, keys: dict[str, str]) -> tuple[str, str]:
    """Layer name and parameter of a PEFT key."""
    for ending, parameter in keys.items():
        if key.startswith(PREFIX) and key.endswith("." + ending):
            return key.removeprefix(PREFIX).removesuffix("." + ending), parameter
    raise ValueError(
        f"the PEFT checkpoint holds {key!r}; expected {PREFIX}<layer>.<one of {', '.join(keys)}>"
    )


def _feedforward(name: str, modules: str | Iterable[str]) -> bool:
    """PEFT's own rule, an ending without regard to the dot."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name.endswith(ending) for ending in modules)


def _complete(adapter: Variant, layer: nn.Module, entry: checkpoint.Entry) -> None:
    """What PEFT's PiSSA folder leaves out: the initial factors and the base they belong to."""
    if isinstance(adapter, PiSSA):
        adapter.init(layer)
        entry.tensors |= {"A_initial": adapter.A0.clone(), "B_initial": adapter.B0.clone()}
        entry.fingerprint = adapter.fingerprint(layer)

"""adapter_config.json: what PEFT's fields mean here, read and written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .config import AdapterConfig
from .kinds import kind_of
from .target import layers_of_kind, pattern_value
from .variant import VARIANTS, Variant, config_from_dict
from .variants import IA3

__all__ = ["PEFT_TYPE", "check_complete", "options", "parsed", "read", "written"]

PEFT_TYPE = {"lora": "LORA", "pissa": "LORA", "dora": "LORA", "ia3": "IA3", "hra": "HRA", "delora": "DELORA"}

# What each PEFT type's own fields are called here.
FIELDS: dict[str, dict[str, str]] = {
    "LORA": {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "use_rslora": "rslora",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    },
    "IA3": {},
    "HRA": {"r": "rank", "apply_GS": "gram_schmidt"},
    "DELORA": {
        "r": "rank",
        "delora_lambda": "lambda0",
        "module_dropout": "dropout",
        "rank_pattern": "rank_pattern",
        "lambda_pattern": "lambda0_pattern",
    },
}
# Fields that choose layers, or say nothing about what a trained adapter computes.
SILENT = frozenset({
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "feedforward_modules",
    "inference_mode", "init_ia3_weights", "init_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type", "use_dora",
})  # fmt: skip
# Fields of which some values are taken; any field that is not known at all must be empty.
TAKEN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "pissa", None),
}


def read(path: Path) -> dict[str, Any]:
    """The file's fields. Raises ValueError for what is no such file, and for options that lora_lite lacks."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a readable PEFT configuration: {error}") from None
    if not isinstance(data, dict) or data.get("peft_type") not in FIELDS:
        kind = data.get("peft_type") if isinstance(data, dict) else data
        raise ValueError(f"{str(path)!r} is for peft_type {kind!r}; lora_lite reads {', '.join(FIELDS)}")
    for field, value in data.items():
        known = field in SILENT or field in FIELDS[data["peft_type"]]
        if not known and (value not in TAKEN[field] if field in TAKEN else value):
            raise ValueError(f"{str(path)!r} has {field}={value!r}, which lora_lite does not have")
    return data


def parsed(data: dict[str, Any]) -> AdapterConfig:
    """The config of the same adapter."""
    kind = data["peft_type"]
    variant = kind.lower()
    if kind == "LORA":
        special = "pissa" if data.get("init_lora_weights") == "pissa" else "lora"
        variant = "dora" if data.get("use_dora") else special
    own = {name: data[field] for field, name in FIELDS[kind].items() if data.get(field) is not None}
    return config_from_dict({"variant": variant, **own})


def options(path: str, config: AdapterConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What holds for one layer alone."""
    found = {
        field: value for field in config.patterns if (value := pattern_value(path, config, field)) is not None
    }
    if data["peft_type"] == "IA3":
        found["feedforward"] = _feedforward(path, data.get("feedforward_modules") or ())
    return found


def _feedforward(name: str, modules: str | Iterable[str]) -> bool:
    """PEFT's own rule, an ending without regard to the dot."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name.endswith(ending) for ending in modules)


def check_complete(model: nn.Module, data: dict[str, Any], found: set[str]) -> None:
    """Raises ValueError if the file lacks a layer that its target_modules name, or has one that they do not."""
    if data.get("target_modules") in (None, [], "all-linear") or kind_of(model) is not None:
        return
    kinds = VARIANTS[parsed(data).variant].kinds
    expected = {name for name in layers_of_kind(model, kinds) if _is_target(name, data)}
    if missing := sorted(expected - found):
        raise ValueError(
            f"the PEFT checkpoint has no tensors for {missing[0]!r}, which its target_modules name"
        )
    if left := sorted(name for name in found if not _is_target(name, data)):
        raise ValueError(
            f"the PEFT checkpoint has tensors for {left[0]!r}, which its target_modules do not name"
        )


def _is_target(name: str, data: dict[str, Any]) -> bool:
    """Whether PEFT would adapt the module: a list names whole modules or endings, a string is a regular expression."""
    targets = data["target_modules"]
    if (excluded := data.get("exclude_modules")) and _fits(name, excluded):
        return False
    if isinstance(targets, str) or name in targets:
        return _fits(name, targets)
    return _fits(name, targets) and _in_blocks(name, data)


def _fits(name: str, given: str | list[str]) -> bool:
    if isinstance(given, str):
        return re.fullmatch(given, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in given)


def _in_blocks(name: str, data: dict[str, Any]) -> bool:
    """Whether layers_to_transform lets the module be; its number is the first behind a name of layers_pattern."""
    blocks = data.get("layers_to_transform")
    if blocks is None or blocks == []:
        return True
    patterns = data.get("layers_pattern") or []
    starts = [rf"(?:^|.*?\.){p}" for p in ([patterns] if isinstance(patterns, str) else patterns)]
    for start in starts or [r".*?\.[^.]*"]:
        if found := re.match(rf"{start}\.(\d+)\.", name):
            return int(found.group(1)) in ([blocks] if isinstance(blocks, int) else blocks)
    return False


def written(model: nn.Module, config: AdapterConfig, found: dict[str, Variant]) -> dict[str, Any]:
    """The contents of adapter_config.json; layers by their full names."""
    kind = PEFT_TYPE[config.variant]
    data: dict[str, Any] = {
        "peft_type": kind,
        "inference_mode": True,
        "target_modules": _targets(model, found),
    }
    own = {**config.to_dict(), **_patterns(config, found)}
    if config.variant == "pissa":
        own = _doubled(own)
    data |= {field: own[name] for field, name in FIELDS[kind].items()}
    if kind == "LORA":
        data |= {"use_dora": config.variant == "dora", "init_lora_weights": True, "bias": "none"}
    if kind == "IA3":
        data["feedforward_modules"] = _feedforward_modules(found)
    if kind in ("LORA", "IA3"):
        data["fan_in_fan_out"] = any(adapter.kind.name == "conv1d" for adapter in found.values())
    return data


def _targets(model: nn.Module, found: dict[str, Variant]) -> list[str] | str:
    """The full names; a regular expression where one of them is the ending of another module's."""
    names = list(found)
    others = [n for n, _ in model.named_modules() if n not in found and ".lora_lite" not in n]
    return _exact(names) if any(_fits(other, names) for other in others) else names


def _exact(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _patterns(config: AdapterConfig, found: dict[str, Variant]) -> dict[str, dict[str, Any]]:
    """What single layers have of their own, by their full names."""
    patterns: dict[str, dict[str, Any]] = {}
    for field, source in config.patterns.items():
        own = {name: adapter.option(field) for name, adapter in found.items()}
        differs = {f"^{re.escape(n)}": value for n, value in own.items() if value != getattr(config, field)}
        patterns[source] = differs
    return patterns


def _doubled(own: dict[str, Any]) -> dict[str, Any]:
    """Rank 2r with the same scale: α doubles with it, or grows by √2 where the scale is α/√r."""
    grows = math.sqrt(2) if own["rslora"] else 2
    doubled = {"rank": 2 * own["rank"], "alpha": grows * own["alpha"]}
    doubled["rank_pattern"] = {name: 2 * rank for name, rank in own["rank_pattern"].items()}
    doubled["alpha_pattern"] = {name: grows * alpha for name, alpha in own["alpha_pattern"].items()}
    return {**own, **doubled}


def _feedforward_modules(found: dict[str, Variant]) -> list[str] | str:
    """The layers gated at their input; a regular expression where PEFT's endings would catch another one."""
    gated = [name for name, adapter in found.items() if isinstance(adapter, IA3) and adapter.feedforward]
    caught = [name for name in found if _feedforward(name, gated)]
    return gated if caught == gated else _exact(gated)

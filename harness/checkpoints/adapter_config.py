"""PEFT's adapter_config.json: the method, each module's rank and alpha, and which modules it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.checkpoints.tensor_folder import read_json
from oracles.vectors.meaning import Method
from oracles.vectors.methods import method_of, types
from oracles.vectors.unreadable import Unreadable

CONFIG = "adapter_config.json"
# What changes the base or the formula in ways that the file alone does not tell, or that no merge can carry.
UNKNOWN_STARTS = ("olora", "corda", "loftq", "lora_ga", "mica")
UNKNOWN_FIELDS = (
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "layer_replication",
    "trainable_token_indices",
    "arrow_config",
)


@dataclass(frozen=True)
class AdapterConfig:
    """What the file says, field by field."""

    path: Path
    data: Mapping[str, Any]

    @cached_property
    def method(self) -> Method:
        """Whose it is; raises Unreadable for a method that is not known here."""
        found = method_of(self.data)
        if found is None:
            kind = self.data.get("peft_type")
            raise Unreadable(f"{self.path} is for peft_type {kind!r}; known are {', '.join(types())}")
        return found

    @property
    def default_rank(self) -> int:
        """``r``; zero where the method has none."""
        return int(_number(self, "r")) if self.method.has_rank else 0

    @property
    def default_alpha(self) -> float:
        """``lora_alpha``; zero where the scale is not made from an α."""
        return _number(self, self.method.alpha) if self.method.alpha else 0.0

    def rank(self, module: str) -> int:
        """A module's rank, by ``rank_pattern``."""
        return int(self._pattern("rank_pattern", module, self.default_rank))

    def alpha(self, module: str) -> float:
        """A module's alpha, by ``alpha_pattern``."""
        return float(self._pattern("alpha_pattern", module, self.default_alpha))

    def _pattern(self, field: str, module: str, default: float) -> float:
        """The first pattern that, at a dot, ends the module's name."""
        for pattern, value in (self.data.get(field) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return default

    @property
    def saved_modules(self) -> list[str]:
        """``modules_to_save``."""
        return list(self.data.get("modules_to_save") or ())

    @property
    def target_parameters(self) -> list[str]:
        """Parameters that are adapted as such."""
        return list(self.data.get("target_parameters") or ())

    def is_saved(self, module: str) -> bool:
        """Whether the file holds this module whole."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.saved_modules)

    @property
    def lists_targets(self) -> bool:
        """Whether the targets can be told without the architecture's defaults."""
        return self.data.get("target_modules") not in (None, "all-linear")

    def is_target(self, module: str) -> bool:
        """Whether the file says that it is for this module."""
        excluded = self.data.get("exclude_modules") or ()
        if self.is_saved(module) or _named(excluded, module):
            return False
        targets = self.data.get("target_modules")
        if targets in (None, "all-linear"):
            return targets == "all-linear"
        if isinstance(targets, str) or module in targets:
            return _named(targets, module)
        return _named(targets, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        chosen = self.data.get("layers_to_transform")
        if chosen is None or chosen == []:
            return True
        patterns = self.data.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
            if match:
                index = int(match["index"])
                return index == chosen if isinstance(chosen, int) else index in chosen
        return False


def _named(listed: Any, module: str) -> bool:
    if isinstance(listed, str):
        return re.fullmatch(listed, module) is not None
    return module in listed or any(module.endswith(f".{name}") for name in listed)


def _number(config: AdapterConfig, field: str) -> float:
    value = config.data.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"{config.path} has {field}={value!r}, expected a number")
    return value


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter folder; raises Unreadable for one whose meaning is not known here."""
    config = AdapterConfig(folder / CONFIG, read_json(folder / CONFIG))
    assert config.method
    for field in UNKNOWN_FIELDS:
        if config.data.get(field):
            raise Unreadable(
                f"{config.path} has {field}={config.data[field]!r}, whose meaning is not known here"
            )
    start = str(config.data.get("init_lora_weights", "")).lower()
    if start.startswith(UNKNOWN_STARTS):
        raise Unreadable(
            f"{config.path} has init_lora_weights={start!r}: the base was changed at the start, "
            "by how much the file does not tell"
        )
    return config

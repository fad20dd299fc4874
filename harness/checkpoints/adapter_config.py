"""PEFT's adapter_config.json: the method, each module's rank and alpha, and which modules it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checkpoints.tensor_folder import Unreadable, read_json

CONFIG = "adapter_config.json"
METHODS = ("LORA", "IA3", "HRA", "DELORA", "VERA")
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

    @property
    def kind(self) -> str:
        """PEFT's type."""
        return str(self.data["peft_type"])

    @property
    def method(self) -> str:
        """lora, dora, pissa, ia3, hra, delora or vera."""
        if self.kind != "LORA":
            return self.kind.lower()
        if self.data.get("use_dora"):
            return "dora"
        return "pissa" if str(self.data.get("init_lora_weights", "")).startswith("pissa") else "lora"

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the file says that weights are (in, out)."""
        return bool(self.data.get("fan_in_fan_out"))

    @property
    def default_rank(self) -> int:
        """``r``; zero where the method has none."""
        return _number(self, "r", 0 if self.kind == "IA3" else None, int)

    @property
    def default_alpha(self) -> float:
        """``lora_alpha``, or DeLoRA's initial λ."""
        field = {"LORA": "lora_alpha", "DELORA": "delora_lambda"}.get(self.kind)
        return _number(self, field, None, float) if field else 0.0

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

    def is_feedforward(self, module: str) -> bool:
        """(IA)³: whether the gate is on the input. PEFT's own rule, an ending without regard to the dot."""
        listed = self.data.get("feedforward_modules") or ()
        if isinstance(listed, str):
            return re.fullmatch(listed, module) is not None
        return any(module.endswith(name) for name in listed)

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


def _number(config: AdapterConfig, field: str, default: Any, kind: type) -> Any:
    value = config.data.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"{config.path} has {field}={value!r}, expected a number")
    return kind(value)


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter folder; raises Unreadable for one whose meaning is not known here."""
    config = AdapterConfig(folder / CONFIG, read_json(folder / CONFIG))
    if config.data.get("peft_type") not in METHODS:
        kind = config.data.get("peft_type")
        raise Unreadable(f"{config.path} is for peft_type {kind!r}; known are {', '.join(METHODS)}")
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

"""The methods that the corpus and the commands know: those of the audit that have a file here, in its order."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from oracles.variants import VARIANTS
from oracles.vectors.meaning import Method


@cache
def modules() -> tuple[Any, ...]:
    """Each method's module, with its ``METHOD``, its ``VECTORS``, and for names its ``SAMPLE`` and ``WORD``."""
    names = [f"oracles.vectors.{variant}" for variant in VARIANTS]
    return tuple(importlib.import_module(name) for name in names if find_spec(name))


def types() -> list[str]:
    """PEFT's types, each once."""
    return list(dict.fromkeys(module.METHOD.peft_type for module in modules()))


def method_of(config: Mapping[str, Any]) -> Method | None:
    """The method of an adapter_config.json, None where it is none of these: the last one that it means."""
    meant = [m.METHOD for m in modules() if m.METHOD.peft_type == config.get("peft_type")]
    return next((method for method in reversed(meant) if method.is_meant(config)), None)

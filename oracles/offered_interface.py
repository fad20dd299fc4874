"""`from adapter_conformance import Implementation, ...` in a subject file, where that package is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = "adapter_conformance"
MODULES = ("implementation", "array_implementation")


def offer() -> None:
    """Stand in for the installed package, by the same names, so that one subject file serves both."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return
    made = ModuleType(NAME, __doc__)
    made.__path__ = []
    made.__getattr__ = _exported  # type: ignore[method-assign]
    sys.modules[NAME] = made
    for name in MODULES:
        sys.modules[f"{NAME}.{name}"] = importlib.import_module(f"oracles.{name}")


def _exported(name: str) -> Any:
    for module in MODULES:
        if name in (exports := importlib.import_module(f"oracles.{module}")).__all__:
            return getattr(exports, name)
    raise AttributeError(f"module {NAME!r} has no attribute {name!r}")

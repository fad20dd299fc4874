"""The subject interface's classes: the audit's own where it runs in this process, else loaded from its files alone."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from adapter_conformance.house import HOUSE

MODULES = {
    "Adapted": "implementation",
    "AdapterSpec": "implementation",
    "Implementation": "implementation",
    "Slot": "implementation",
    "Unsupported": "implementation",
    "ArrayImplementation": "array_implementation",
}


def module_of(name: str) -> ModuleType:
    """`oracles.NAME` where the audit runs already (one set of classes), else `adapter_conformance.NAME`."""
    for known in (f"oracles.{name}", f"adapter_conformance.{name}"):
        if known in sys.modules:
            return sys.modules[known]
    if name == "implementation":
        return _loaded(name)
    with _as_the_audit_calls_it(module_of("implementation")):
        return _loaded(name)


def _loaded(name: str) -> ModuleType:
    file = HOUSE / "oracles" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"adapter_conformance.{name}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextmanager
def _as_the_audit_calls_it(interface: ModuleType) -> Iterator[None]:
    """`oracles.implementation` for as long as its neighbour is loaded, which imports it by that name."""
    names = {"oracles": types.ModuleType("oracles"), "oracles.implementation": interface}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module

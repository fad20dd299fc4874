"""Run one of the authors' files by itself: hash-checked, in its own namespace, leaving nothing behind.

While a file runs, the modules it would import from its own package (or that are heavy, or look for a GPU) are
stand-ins; afterwards `sys.modules` and `sys.argv` are what they were.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import make_dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from refs.catalog import Reference
from refs.errors import HashMismatchError
from refs.locate import locate

__all__ = ["PACKAGE", "PeftType", "function", "module", "peft_package", "stand_in"]

PACKAGE = "_audited_author"
HEAVY = ("transformers", "transformers.pytorch_utils", "PIL", "matplotlib", "matplotlib.pyplot")


def module(
    reference: Reference,
    cache: Path | None = None,
    within: str = "",
    stubs: Mapping[str, ModuleType] | None = None,
) -> ModuleType:
    """The file of ``reference`` as a module nobody else can import.

    ``within`` is the package it believes to be in, below `PACKAGE`; ``stubs`` are the modules it finds while
    it runs, by full name. Raises NotAvailableError, HashMismatchError.
    """
    path = locate(reference, cache)
    return _module(path, reference.sha256, within, tuple(sorted((stubs or {}).items())))


def function(reference: Reference, name: str, cache: Path | None = None, **given: Any) -> Callable[..., Any]:
    """One function of a file that cannot be run as a whole, with ``given`` for the globals it uses."""
    path = locate(reference, cache)
    tree = ast.parse(_bytes(path, reference.sha256))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    namespace = {"torch": torch, **given}
    exec(compile(tree, str(path), "exec"), namespace)
    return namespace[name]


def stand_in(name: str, **members: Any) -> ModuleType:
    """A module that offers ``members`` and nothing else."""
    made = ModuleType(name)
    made.__path__ = []
    vars(made).update(members)
    return made


class PeftType(StrEnum):
    """The kinds that the forks of PEFT tell apart when they save."""

    LORA = "LORA"
    DORA = "DORA"
    DELORA = "DELORA"
    BOTTLENECK = "BOTTLENECK"


@lru_cache(maxsize=1)
def peft_package() -> dict[str, ModuleType]:
    """What the forks of PEFT import from their own package: a config, the kinds, a transpose."""
    config = make_dataclass("PeftConfig", [("peft_type", Any, None), ("inference_mode", bool, False)])
    offered = {"PeftConfig": config, "PeftType": PeftType, "transpose": _transpose}
    names = (f"{PACKAGE}.utils", f"{PACKAGE}.utils.config")
    return {name: stand_in(name, **offered) for name in names}


def _transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    return weight.mT if fan_in_fan_out else weight


@lru_cache(maxsize=32)
def _module(path: Path, sha256: str, within: str, stubs: tuple[tuple[str, ModuleType], ...]) -> ModuleType:
    code = compile(_bytes(path, sha256), str(path), "exec")
    package = f"{PACKAGE}.{within}".rstrip(".")
    made = ModuleType(f"{package}.{path.stem}")
    made.__package__, made.__file__ = package, str(path)
    with _swapped(_surroundings(package, made, dict(stubs))), _no_arguments(path):
        exec(code, made.__dict__)
    return made


def _surroundings(
    package: str, made: ModuleType, stubs: Mapping[str, ModuleType]
) -> dict[str, ModuleType | None]:
    """What `sys.modules` shows while the file runs: its package, the stand-ins, and no bitsandbytes."""
    shown: dict[str, ModuleType | None] = {name: stand_in(name) for name in HEAVY}
    vars(shown["transformers.pytorch_utils"])["Conv1D"] = type("Conv1D", (torch.nn.Module,), {})
    vars(shown["matplotlib"])["pyplot"] = shown["matplotlib.pyplot"]
    own = {PACKAGE: stand_in(PACKAGE), package: stand_in(package), made.__name__: made}
    return shown | own | {"bitsandbytes": None} | dict(stubs)


@contextmanager
def _swapped(shown: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Put modules into `sys.modules` for a while; afterwards every one of them is what it was."""
    missing = object()
    before = {name: sys.modules.get(name, missing) for name in shown}
    sys.modules.update(shown)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, old in before.items():
            if old is missing:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old  # type: ignore[assignment]


@contextmanager
def _no_arguments(path: Path) -> Iterator[None]:
    before, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = before


def _bytes(path: Path, sha256: str) -> bytes:
    """The bytes that are going to run, checked once more: nothing can have come in between."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise HashMismatchError(f"{path.name} is not the pinned file")
    return data

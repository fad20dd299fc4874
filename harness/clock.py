"""Where an audit's time goes: exclusive seconds per bucket, off unless ``AUDIT_CLOCK`` names a file to write.

Kept apart from every result: timings stand in no report and in no `audit.json`.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from types import ModuleType

TARGET = os.environ.get("AUDIT_CLOCK")
_spent: dict[str, float] = {}
_stack: list[str] = ["pytest"]
_since = time.perf_counter()


def _switch(bucket: str | None) -> None:
    global _since
    now = time.perf_counter()
    _spent[_stack[-1]] = _spent.get(_stack[-1], 0.0) + now - _since
    _since = now
    if bucket is None:
        _stack.pop()
    else:
        _stack.append(bucket)


@contextmanager
def charge(bucket: str) -> Iterator[None]:
    """Charge the block's time to ``bucket``, inner blocks to theirs."""
    if TARGET is None:
        yield
        return
    _switch(bucket)
    try:
        yield
    finally:
        _switch(None)


def _write() -> None:
    _switch("end")
    Path(str(TARGET)).write_text(json.dumps(_spent))


def _charge_imports() -> None:
    """Charge the loading of modules, lazy ones too, to ``imports``; what pytest rewrites stays its own."""
    for loader in (SourceFileLoader, ExtensionFileLoader):
        loader.exec_module = _charged(loader.exec_module)  # type: ignore[method-assign]


def _charged(load: Callable[..., None]) -> Callable[..., None]:
    def exec_module(self: object, module: ModuleType) -> None:
        with charge("imports"):
            load(self, module)

    return exec_module


if TARGET is not None:
    atexit.register(_write)
    _charge_imports()

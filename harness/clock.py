"""Where an audit's time goes: exclusive seconds per bucket, off unless ``AUDIT_CLOCK`` names a file to write.

Seconds of the wall clock or, with ``AUDIT_CLOCK_CPU`` set, of this process's processor time.

Kept apart from every result: timings stand in no report and in no `audit.json`.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from types import ModuleType

TARGET = os.environ.get("AUDIT_CLOCK")
_spent: dict[str, float] = {}
_stack: list[str] = ["pytest"]
_now = time.process_time if os.environ.get("AUDIT_CLOCK_CPU") else time.perf_counter
_since = _now()


def _switch(bucket: str | None) -> None:
    global _since
    now = _now()
    _spent[_stack[-1]] = _spent.get(_stack[-1], 0.0) + now - _since
    _since = now
    if bucket is None:
        _stack.pop()
    else:
        _stack.append(bucket)


class _Charged:
    """A block whose time goes to a bucket. No generator: the audit enters half a million of them."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    def __enter__(self) -> None:
        _switch(self.bucket)

    def __exit__(self, *error: object) -> None:
        _switch(None)


_NOTHING = nullcontext()


def charge(bucket: str) -> AbstractContextManager[None]:
    """Charge the block's time to ``bucket``, inner blocks to theirs."""
    return _NOTHING if TARGET is None else _Charged(bucket)


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

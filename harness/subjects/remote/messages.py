"""Messages as this side sends and judges them: what comes from a subject's process is not trusted.

The format itself (frame, header, tensors) is the worker's, in :mod:`harness.subjects.remote.worker`, which runs on
both sides. Its JSON Schema is ``messages.schema.json`` beside this file.
"""

from __future__ import annotations

import builtins
import functools
import json
import logging
import select
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.subjects.remote.worker import PROTOCOL, BadMessage, Channel, Parcel, Raw, TorchTensors
from oracles.implementation import Unsupported

__all__ = [
    "PROTOCOL",
    "BadMessage",
    "Channel",
    "Parcel",
    "Raw",
    "TorchTensors",
    "opaque",
    "raise_for",
    "reissue",
    "schema",
]

SCHEMA = Path(__file__).with_name("messages.schema.json")


def schema() -> dict[str, Any]:
    """The published JSON Schema of the headers, requests under ``request`` and replies under ``reply``."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text())
    return found


class RemoteException(BaseException):
    """What a subject raised in its own process: the same type's name, the same text."""

    text: str | None = None
    file: str | None = None
    line: int | None = None
    frames: tuple[tuple[str, int, bool], ...] = ()

    def __str__(self) -> str:
        if self.text is None:
            raise ValueError("its text could not be had there either")
        return self.text


def exception_of(error: dict[str, Any]) -> BaseException:
    """The exception that a ``failed`` reply speaks of, to be raised here."""
    if error.get("type") == "SystemExit":
        return SystemExit(error.get("code"))
    kind = _exception_class(str(error.get("type"))[:100], tuple(map(str, error.get("bases", ()))))
    found = kind()
    found.text, found.file, found.line = error.get("text"), error.get("file"), error.get("line")
    found.frames = tuple((str(f), int(n), bool(own)) for f, n, own in error.get("frames", ()))
    if found.file:
        found.add_note(f"in {found.file}, line {found.line}")
    return found


@functools.cache
def _exception_class(name: str, bases: tuple[str, ...]) -> type[RemoteException]:
    """A class of that name; also of the first builtin exception among its bases, for who catches that."""
    if name == "KeyboardInterrupt":
        bases = ()  # the library's, not the user's
    for base in bases:
        known = getattr(builtins, base, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                kind = type(name, (RemoteException, known), {})
                kind()
            except TypeError:  # wants arguments, or has a layout of its own
                continue
            return kind
    return type(name, (RemoteException,), {})


def raise_for(reply: dict[str, Any]) -> None:
    """Raise what a reply says was raised. Raises Unsupported, the subject's exception, or BadMessage.

    An Unsupported has ``lacking`` where it is the subject's environment, and not the subject, that lacks something.
    """
    status = reply.get("status")
    if status == "ok":
        return
    if status == "unsupported":
        error = Unsupported(str(reply.get("reason")))
        error.lacking = bool(reply.get("lacking"))  # type: ignore[attr-defined]
        raise error
    if status == "failed" and isinstance(reply.get("error"), dict):
        raise exception_of(reply["error"])
    raise BadMessage(f"a reply of the status {status!r}")


def reissue(told: Any, logs: Any) -> None:
    """Warn here of what the subject warned of there, and log what it logged."""
    for name, level, text in logs:
        logging.getLogger(str(name)).log(int(level), "%s", text)
    for category, text, file, line in told:
        kind = getattr(builtins, str(category), UserWarning)
        if not (isinstance(kind, type) and issubclass(kind, Warning)):
            kind = UserWarning
        warnings.warn_explicit(str(text), kind, str(file), int(line))


def opaque(name: str) -> Any:
    """A thing that could not be sent: all that is known of it is its type's name."""
    if name == "NoneType":
        return None
    return type(str(name)[:100], (), {"__slots__": ()})()


def patience(seconds: Callable[[], float]) -> Callable[[int], None]:
    """Wait for a descriptor, at most so long. Raises BadMessage."""

    def wait(descriptor: int) -> None:
        end = time.monotonic() + seconds()
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise BadMessage(f"no answer within {seconds():g} s")
            if select.select([descriptor], [], [], left)[0]:
                return

    return wait

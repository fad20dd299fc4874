"""Failing examples kept between runs, on request: `AUDIT_EXAMPLE_DB=DIR` or `redis://HOST:PORT/N`.

Unset, nothing is kept and nothing read: the same input gives the same words. Set, what failed before is tried
first, so that a claim whose failure is rare fails again; a directory or a Redis can be shared between machines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import Phase
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

VARIABLE = "AUDIT_EXAMPLE_DB"


class BadDatabase(Exception):
    """The variable names nothing that can be used; the text is one sentence."""


class OfClaim(ExampleDatabase):
    """The part of a database that belongs to one claim: all claims are one function to Hypothesis."""

    def __init__(self, claim: str, whole: ExampleDatabase) -> None:
        super().__init__()
        self.claim, self.whole = claim.encode() + b"/", whole

    def save(self, key: bytes, value: bytes) -> None:
        self.whole.save(self.claim + key, value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return sorted(self.whole.fetch(self.claim + key))

    def delete(self, key: bytes, value: bytes) -> None:
        self.whole.delete(self.claim + key, value)


def phases() -> tuple[Phase, ...]:
    """The phase in which kept examples are tried; none where none are kept."""
    return (Phase.reuse,) if os.environ.get(VARIABLE) else ()


def database(claim: str) -> ExampleDatabase | None:
    """Where the failing examples of a claim are kept; None where nowhere. Raises BadDatabase."""
    given = os.environ.get(VARIABLE)
    return OfClaim(claim, _opened(given)) if given else None


@lru_cache(maxsize=4)
def _opened(given: str) -> ExampleDatabase:
    if given.startswith(("redis://", "rediss://")):
        return _redis(given)
    folder = Path(given).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadDatabase(f"{VARIABLE}={given!r} cannot be used: {error.strerror}") from error
    return DirectoryBasedExampleDatabase(folder)


def _redis(url: str) -> ExampleDatabase:
    try:
        redis: Any = import_module("redis")
        backend: Any = import_module("hypothesis.extra.redis")
        found: ExampleDatabase = backend.RedisExampleDatabase(redis.Redis.from_url(url))
    except ImportError as error:
        raise BadDatabase(f"{VARIABLE}={url!r}: the package redis is not installed") from error
    except ValueError as error:
        raise BadDatabase(f"{VARIABLE}={url!r}: {error}") from error
    return found

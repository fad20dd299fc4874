"""The named errors of `refs`; each carries one sentence that can be shown as it is."""

from __future__ import annotations

__all__ = [
    "CatalogError",
    "HashMismatchError",
    "NotAvailableError",
    "RefsError",
    "SourceError",
    "UnsafePathError",
    "UsageError",
]


class RefsError(Exception):
    """What every error of this folder is."""


class CatalogError(RefsError):
    """The catalogue itself is malformed, or was asked for something it does not hold."""


class UsageError(RefsError):
    """The command line asks for what cannot be done."""


class SourceError(RefsError):
    """A source file cannot be read or parsed, or does not hold the symbol."""


class NotAvailableError(RefsError):
    """A reference is not on this machine: its package not installed, its file not synced."""


class HashMismatchError(RefsError):
    """A file is there, but it is not the pinned one."""


class UnsafePathError(RefsError):
    """A path that would leave the cache folder, or that passes through a symbolic link."""

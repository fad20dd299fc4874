"""Where a reference's file lies on this machine, and whether it is the pinned one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path, PurePosixPath

import pooch

from refs.catalog import Reference
from refs.errors import HashMismatchError, NotAvailableError, UnsafePathError

__all__ = ["cache_folder", "cache_path", "installed_release", "locate", "sha256_of"]

SYNC = "run `python -m refs sync`"


def cache_folder(given: Path | None = None) -> Path:
    """The cache: ``given``, else $AUDIT_REFS_CACHE, else the user's cache folder."""
    return Path(given or os.environ.get("AUDIT_REFS_CACHE") or pooch.os_cache("peft-conformance-audit"))


def cache_path(reference: Reference, cache: Path | None = None) -> Path:
    """Where the cache holds ``reference``: owner/name/commit/path. Raises UnsafePathError."""
    root = cache_folder(cache)
    parts = [*PurePosixPath(reference.source.name).parts, reference.source.pin]
    parts += PurePosixPath(reference.path).parts
    if any(part in ("", "/", "..") or "\\" in part or ":" in part for part in parts):
        raise UnsafePathError(f"{reference.alias}: `{reference.path}` would leave the cache {root}")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise UnsafePathError(f"{reference.alias}: {path} is a symbolic link; remove it and {SYNC}")
    return path


def locate(reference: Reference, cache: Path | None = None) -> Path:
    """The file on this machine.

    A package's file is taken as it is installed (`refs.verify` reports drift); a repository's must have the
    pinned sha256. Raises NotAvailableError, HashMismatchError, UnsafePathError.
    """
    if reference.source.kind == "package":
        return _installed(reference)
    path = cache_path(reference, cache)
    if not path.is_file():
        raise NotAvailableError(f"{reference.alias} is not synced: {SYNC}")
    found = sha256_of(path)
    if found != reference.sha256:
        hashes = f"its sha256 is {found[:12]}…, {reference.sha256[:12]}… is pinned"
        raise HashMismatchError(f"{reference.alias} was changed: {hashes}; {SYNC}")
    return path


def installed_release(reference: Reference) -> str | None:
    """The release that is installed, of a package; None for a repository's file, which is always the pinned one."""
    if reference.source.kind != "package":
        return None
    try:
        return importlib.metadata.version(reference.source.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex. Raises NotAvailableError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NotAvailableError(f"{path} cannot be read: {error.strerror or error}") from None


def _installed(reference: Reference) -> Path:
    """A file of an installed package, found without importing it."""
    package, *rest = PurePosixPath(reference.path).parts
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotAvailableError(f"{reference.alias}: the package {reference.source.name} is not installed")
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    if not path.is_file():
        raise NotAvailableError(
            f"{reference.alias}: the installed {reference.source.name} has no {reference.path}"
        )
    return path

"""Fill the cache with the authors' files, from their repositories, a mirror or local clones."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from refs.catalog import Catalog, Reference
from refs.errors import NotAvailableError, RefsError
from refs.locate import cache_folder, cache_path, locate

__all__ = ["BASE_URL", "Outcome", "find_clones", "sync"]

BASE_URL = "https://raw.githubusercontent.com/"
RETRIES = 2


@dataclass(frozen=True)
class Outcome:
    """What became of one file: kept, fetched or failed, and the sentence that says it."""

    reference: Reference
    state: str
    sentence: str


def sync(
    catalog: Catalog,
    cache: Path | None = None,
    clones: Path | None = None,
    base_url: str = BASE_URL,
    retries: int = RETRIES,
) -> Iterator[Outcome]:
    """Bring every repository's file into the cache, one outcome each; what is already right is kept.

    ``clones`` is a folder of git clones, else ``base_url`` serves owner/name/commit/path. Raises
    NotAvailableError when the network (or ``clones``) cannot be reached at all.
    """
    found = find_clones(clones) if clones else []
    for reference in catalog.files.values():
        if reference.source.kind != "repository":
            continue
        if _is_right(reference, cache):
            yield Outcome(reference, "kept", "already there")
            continue
        try:
            said = (
                _copy(reference, found, cache) if clones else _download(reference, base_url, retries, cache)
            )
            yield Outcome(reference, "fetched", said)
        except NotAvailableError:
            raise
        except (RefsError, OSError) as error:
            yield Outcome(reference, "failed", str(error))


def find_clones(folder: Path, depth: int = 3) -> list[Path]:
    """The git clones in ``folder``, bare or not, at most ``depth`` folders down. Raises NotAvailableError."""
    if not folder.is_dir():
        raise NotAvailableError(f"{folder} is not a folder")
    if (folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "objects").is_dir()):
        return [folder]
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    return [clone for child in below if depth for clone in find_clones(child, depth - 1)]


def _is_right(reference: Reference, cache: Path | None) -> bool:
    try:
        locate(reference, cache)
    except RefsError:
        return False
    return True


def _copy(reference: Reference, clones: list[Path], cache: Path | None) -> str:
    """Take the file from the first clone that holds it at the pin, else at HEAD, with the pinned sha256."""
    seen = ""
    for commit in (reference.source.pin, "HEAD"):
        for clone in clones:
            data = _blob(clone, commit, reference.path)
            if data is not None and hashlib.sha256(data).hexdigest() == reference.sha256:
                _store(cache_path(reference, cache), data)
                return f"from {clone} at {commit[:12]}"
            seen = seen or (f"{clone.name} has another {reference.path}: refused" if data is not None else "")
    wanted = f"{reference.source.name} at {reference.source.pin[:12]}"
    raise RefsError(f"{reference.alias}: {seen or f'no clone holds {reference.path}'} ({wanted})")


def _blob(clone: Path, commit: str, path: str) -> bytes | None:
    """The bytes of ``path`` at ``commit``, or None where the clone lacks it. Raises NotAvailableError."""
    command = ["git", "-C", str(clone), "cat-file", "blob", f"{commit}:{path}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAvailableError(f"git cannot be run: {error}") from None
    return done.stdout if done.returncode == 0 else None


def _store(target: Path, data: bytes) -> None:
    """Write ``data`` to ``target`` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _download(reference: Reference, base_url: str, retries: int, cache: Path | None) -> str:
    """Download one file with pooch: retried, checked before it is kept. Offline raises NotAvailableError."""
    root = cache_folder(cache)
    name = cache_path(reference, cache).relative_to(root).as_posix()
    base_url = base_url.rstrip("/") + "/"
    store = pooch.create(
        root, base_url, registry={name: f"sha256:{reference.sha256}"}, retry_if_failed=retries
    )
    pooch.get_logger().setLevel(logging.CRITICAL)
    try:
        store.fetch(name)
    except (requests.ConnectionError, requests.Timeout):
        raise NotAvailableError(f"{base_url} cannot be reached: the recordings stand in") from None
    except requests.RequestException as error:
        raise RefsError(f"{reference.alias}: {error}") from None
    except ValueError:  # pooch's word for a wrong hash; it has deleted what it fetched
        raise RefsError(f"{reference.alias}: what {base_url} sent has another sha256: refused") from None
    return f"from {base_url}"

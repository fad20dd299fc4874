"""`python -m oracles record`: run every author's code on its family of cases and write what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch

from oracles.authors.availability import AUTHORS, live_cases, provenance_of
from oracles.authors.base import AuthorImplementation
from oracles.authors.recorded_case import RecordedCase
from oracles.authors.recordings import ROOT, SCHEMA, entry, folder, seal, tensors_of, versions
from refs.catalog import Catalog
from refs.errors import HashMismatchError
from refs.verify import check

__all__ = ["write", "write_one"]


def write(root: Path | None, catalog: Catalog, cache: Path | None = None) -> Iterator[str]:
    """Record every oracle below ``root`` (default refs/recordings), a line for each.

    Raises HashMismatchError, before anything is written, when one of the files is not the pinned one.
    """
    for alias in (alias for kind in AUTHORS for alias in (kind.alias, *kind.needs)):
        status = check(catalog, alias, cache)
        if status.state != "ok":
            raise HashMismatchError(f"only pinned files are recorded: {status.sentence}")
    for kind in AUTHORS:
        made = live_cases(kind(catalog, cache))
        size = write_one(folder(kind.variant, kind.oracle, root or ROOT), kind, catalog, made)
        yield f"{kind.variant}-{kind.oracle}: {len(made)} cases, {size // 1024} KiB"


def write_one(
    where: Path, kind: type[AuthorImplementation], catalog: Catalog, made: Sequence[RecordedCase]
) -> int:
    """Write one recording; the number of bytes of its tensors."""
    where.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({name: t for case in made for name, t in tensors_of(case).items()})
    manifest = {
        "schema": SCHEMA,
        "variant": kind.variant,
        "oracle": kind.oracle,
        "provenance": provenance_of(catalog, kind),
        "versions": versions(),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "cases": [entry(case) for case in made],
    }
    manifest["seal"] = seal(manifest)
    (where / "cases.safetensors").write_bytes(data)
    (where / "manifest.json").write_text(
        json.dumps(manifest, indent=1, ensure_ascii=True) + "\n", encoding="utf-8"
    )
    return len(data)

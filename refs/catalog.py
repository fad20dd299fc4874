"""The catalogue of references: `catalog.toml` read, checked and made into frozen records."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from refs.errors import CatalogError
from refs.vocabulary import ASPECTS

__all__ = ["Catalog", "Cite", "Reference", "Source", "load", "parse_target"]

HERE = Path(__file__).resolve().parent
LARGEST = 2**20


@dataclass(frozen=True)
class Source:
    """Where files come from: a package at a version, or a repository at a commit."""

    id: str
    kind: str  # "package" | "repository"
    name: str  # the package, or owner/name
    pin: str  # the version, or the commit
    licence: str
    url: str  # a page for lines start to end of a path
    raw: str | None = None  # the path of a file below a download base


@dataclass(frozen=True)
class Reference:
    """One pinned file."""

    alias: str
    source: Source
    path: str
    sha256: str
    oracle: str | None = None  # the id of the oracle that runs this file

    def url(self, start: int, end: int, release: str | None = None) -> str:
        """The page that shows lines ``start`` to ``end``, of another release than the pinned one where it is named."""
        given = {"name": self.source.name, "pin": release or self.source.pin, "path": self.path}
        return self.source.url.format(**given, start=start, end=end)


@dataclass(frozen=True)
class Cite:
    """Where a reference says something about one aspect of a variant."""

    variant: str
    aspect: str
    alias: str
    symbol: str
    anchor: str | None = None


@dataclass(frozen=True)
class Catalog:
    """Every reference by alias, every cite, and the digest of every cited symbol at the pin."""

    files: Mapping[str, Reference]
    cites: tuple[Cite, ...]
    digests: Mapping[str, Mapping[str, str]]

    @property
    def variants(self) -> tuple[str, ...]:
        """Those with cites, in the catalogue's order."""
        return tuple(dict.fromkeys(c.variant for c in self.cites))

    def reference(self, alias: str) -> Reference:
        """The reference called ``alias``. Raises CatalogError."""
        if alias not in self.files:
            raise CatalogError(f"there is no reference `{alias}`; `python -m refs list` shows them")
        return self.files[alias]

    def cites_of(self, variant: str, aspect: str) -> list[Cite]:
        """The cites of one aspect, in the catalogue's order. Raises CatalogError for an unknown name."""
        for value, known in ((variant, self.variants), (aspect, tuple(ASPECTS))):
            if value not in known:
                raise CatalogError(f"`{value}` is none of {', '.join(known)}")
        return [c for c in self.cites if (c.variant, c.aspect) == (variant, aspect)]


def parse_target(text: str) -> tuple[str, str, str | None]:
    """``ALIAS:SYMBOL`` or ``ALIAS:SYMBOL @ ANCHOR`` taken apart. Raises CatalogError."""
    place, _, anchor = text.partition(" @ ")
    alias, colon, symbol = place.strip().partition(":")
    if not (alias and colon and symbol):
        raise CatalogError(f"`{text}` is not ALIAS:SYMBOL or 'ALIAS:SYMBOL @ ANCHOR'")
    return alias, symbol, anchor.strip() or None


def load(path: Path | None = None) -> Catalog:
    """The catalogue at ``path``, or the one beside this file. Raises CatalogError at the first fault."""
    path = Path(path or HERE / "catalog.toml")
    try:
        return _load(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=8)
def _load(path: Path, mtime: int) -> Catalog:
    if path.stat().st_size > LARGEST:
        raise CatalogError(f"{path.name} is larger than {LARGEST} bytes")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, no TOML, a number too long
        raise CatalogError(f"{path.name} is not valid TOML: {str(error)[:200]}") from None
    if strange := sorted(set(data) - {"source", "files", "cites"}):
        raise CatalogError(f"{path.name} holds `{strange[0][:60]}`; expected source, files and cites")
    try:
        return _catalog(data, _digests(path.with_name("digests.json")))
    except (AttributeError, TypeError, KeyError, ValueError, IndexError) as error:
        raise CatalogError(f"{path.name} is malformed: {str(error)[:200]}") from None


def _catalog(data: Mapping[str, Any], digests: Mapping[str, Mapping[str, str]]) -> Catalog:
    sources = {key: _source(key, entry) for key, entry in data.get("source", {}).items()}
    files: dict[str, Reference] = {}
    for key, group in data.get("files", {}).items():
        if key not in sources:
            raise CatalogError(f"the catalogue has files of `{key}`, which is no source")
        files.update({alias: _reference(alias, sources[key], entry) for alias, entry in group.items()})
    for reference in files.values():
        reference.url(1, 1)
    cites = tuple(_cites(data.get("cites", {}), files))
    return Catalog(MappingProxyType(files), cites, digests)


def _source(key: str, entry: Mapping[str, Any]) -> Source:
    try:
        source = Source(id=key, **entry)
    except TypeError as error:
        raise CatalogError(f"source `{key}`: {str(error).partition(') ')[2] or error}") from None
    if source.kind not in ("package", "repository"):
        raise CatalogError(f"source `{key}`: kind is `{source.kind}`, not package or repository")
    if source.kind == "repository" and not re.fullmatch(r"[0-9a-f]{40}", source.pin):
        raise CatalogError(f"source `{key}`: a repository is pinned by a full commit, not `{source.pin}`")
    return source


def _reference(alias: str, source: Source, entry: Mapping[str, Any]) -> Reference:
    path, sha256 = str(entry.get("path", "")), str(entry.get("sha256", ""))
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise CatalogError(f"{alias}: `{path}` is not a path inside {source.name}")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise CatalogError(f"{alias}: `{sha256}` is not a sha256")
    return Reference(alias, source, path, sha256, entry.get("oracle"))


def _cites(data: Mapping[str, Any], files: Mapping[str, Reference]) -> list[Cite]:
    cites: list[Cite] = []
    for variant, aspects in data.items():
        for aspect, targets in aspects.items():
            if aspect not in ASPECTS:
                raise CatalogError(f"cites of `{variant}.{aspect}`: unknown aspect")
            for alias, symbol, anchor in map(parse_target, targets):
                if alias not in files:
                    raise CatalogError(f"cites of `{variant}.{aspect}`: there is no reference `{alias}`")
                cites.append(Cite(variant, aspect, alias, symbol, anchor))
    return cites


def _digests(path: Path) -> Mapping[str, Mapping[str, str]]:
    if not path.exists():
        return MappingProxyType({})
    try:
        return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CatalogError(f"{path.name} is not valid JSON: {error}") from None

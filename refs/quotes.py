"""Citations: lines of a reference or of the subject, with numbers and url, or a sentence saying why not."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from refs.catalog import Catalog, Cite, Reference
from refs.errors import RefsError, SourceError
from refs.locate import installed_release, locate
from refs.source import digest_tree, node_of, numbered, per_version, quote

__all__ = [
    "Citation",
    "cite",
    "cite_file",
    "cite_lines",
    "cite_target",
    "places",
    "quotes_of",
    "symbol_digest",
]

LONGEST = 10


@dataclass(frozen=True)
class Citation:
    """At most ten lines of ``alias``; ``missing`` is the sentence to show where there are none.

    ``note`` says that the symbol differs from the pinned release, so that the quote is of another version.
    """

    alias: str
    symbol: str
    url: str | None = None
    start: int | None = None
    end: int | None = None
    lines: tuple[str, ...] = ()
    missing: str | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        """``alias:L150``, or ``alias:L150-L157`` for several lines; the alias alone where there are none."""
        if self.start is None:
            return self.alias
        return f"{self.alias}:L{self.start}" + (f"-L{self.end}" if self.end != self.start else "")


def cite(catalog: Catalog, item: Cite, cache: Path | None = None) -> Citation:
    """The citation of one cite of the catalogue; never raises for what is wrong with a file."""
    return cite_target(catalog, item.alias, item.symbol, item.anchor, cache)


def quotes_of(catalog: Catalog, variant: str, aspect: str, cache: Path | None = None) -> list[Citation]:
    """A citation for each cite of one aspect: lines with their url, or why there are none. Raises CatalogError."""
    return [cite(catalog, item, cache) for item in catalog.cites_of(variant, aspect)]


def cite_target(
    catalog: Catalog, alias: str, symbol: str, anchor: str | None = None, cache: Path | None = None
) -> Citation:
    """The citation of ``symbol`` in the reference ``alias``. Raises CatalogError for an unknown alias."""
    reference = catalog.reference(alias)
    try:
        path = locate(reference, cache)
    except RefsError as error:
        return Citation(alias, symbol, missing=str(error))
    found = cite_file(path, symbol, anchor, alias)
    if found.start is None or found.end is None:
        return found
    note = _drift(catalog, reference, path, symbol)
    url = reference.url(found.start, found.end, installed_release(reference))
    return Citation(alias, symbol, url, found.start, found.end, found.lines, None, note)


def cite_lines(catalog: Catalog, alias: str, start: int, end: int, cache: Path | None = None) -> Citation:
    """The lines ``start`` to ``end`` of a reference, at most ten. Raises RefsError."""
    reference = catalog.reference(alias)
    path, end = locate(reference, cache), min(end, start + LONGEST - 1)
    lines = numbered(path, start, end)
    release = installed_release(reference)
    note = None
    if release not in (None, reference.source.pin):
        note = f"{alias} is that of {reference.source.name} {release}, {reference.source.pin} is pinned"
    url = reference.url(start, end, release)
    return Citation(alias, f"L{start}", url, start, start + len(lines) - 1, lines, None, note)


def places(catalog: Catalog, words: str) -> list[tuple[str, str | None]]:
    """(label, url) of every ``ALIAS:L150-L157`` in a list of places; what is no such place has no url."""
    return [(place, _url_of(catalog, place)) for place in words.split(", ") if place]


def _url_of(catalog: Catalog, place: str) -> str | None:
    found = re.match(r"(?P<alias>[^:\s]+):L(?P<start>\d+)(?:-L?(?P<end>\d+))?$", place)
    if found is None or found["alias"] not in catalog.files:
        return None
    reference, start = catalog.files[found["alias"]], int(found["start"])
    return reference.url(start, int(found["end"] or start), installed_release(reference))


def cite_file(path: Path, symbol: str, anchor: str | None = None, alias: str | None = None) -> Citation:
    """The citation of a symbol in any file, the subject's too; never raises for what is wrong with it."""
    alias = alias or path.name
    try:
        found = quote(path, symbol, anchor)
    except SourceError as error:
        return Citation(alias, symbol, missing=str(error).replace(path.name, alias))
    return Citation(alias, symbol, None, found.start, found.end, found.lines)


@per_version
def symbol_digest(path: Path, symbol: str) -> str:
    """The sha256 of a symbol's syntax tree: without comments, docstrings, layout. Raises SourceError."""
    try:
        return hashlib.sha256(repr(digest_tree(node_of(path, symbol))).encode()).hexdigest()[:16]
    except RecursionError:
        raise SourceError(f"{path.name} is nested too deeply to be searched") from None


def _drift(catalog: Catalog, reference: Reference, path: Path, symbol: str) -> str | None:
    pinned = catalog.digests.get(reference.alias, {}).get(symbol)
    if pinned is None or path.suffix != ".py" or symbol_digest(path, symbol) == pinned:
        return None
    return f"`{symbol}` of {reference.alias} differs from {reference.source.name} {reference.source.pin}"

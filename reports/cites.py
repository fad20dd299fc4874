"""Where to look: the references' lines for an aspect, and the subject's."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

from refs import catalog
from refs.errors import RefsError
from refs.quotes import Citation, cite_file, places, quotes_of
from refs.source import docstrings
from refs.vocabulary import ASPECTS
from reports.facts import SOURCES
from reports.model import Cite, DocstringPart, Run, Subject
from reports.order import sorted_variants
from reports.text import one_line

# An aspect whose lines are those of another one.
SAME_LINES = {
    "training": "forward",
    "dtype": "forward",
    "step0": "forward",
    "dropout": "forward",
    "scale": "forward",
    "contexts": "forward",
}
LONGEST_LINE, LONGEST_DOCSTRING = 400, 20_000


def reference_cites(variant: str, aspect: str) -> tuple[Cite, ...]:
    """The references' lines for one aspect, or the sentences that say why there are none."""
    return _citations(variant, aspect, _catalogue_stamp())


def _catalogue_stamp() -> int:
    try:
        return (catalog.HERE / "catalog.toml").stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=512)
def _citations(variant: str, aspect: str, stamp: int) -> tuple[Cite, ...]:
    try:
        found = quotes_of(catalog.load(), variant, aspect)
    except RefsError:
        found = []
    if not found and aspect in SAME_LINES:
        return _citations(variant, SAME_LINES[aspect], stamp)
    return tuple(dict.fromkeys(_cite(citation) for citation in found))


def _cite(citation: Citation) -> Cite:
    lines = tuple(line[:LONGEST_LINE] for line in citation.lines[:10])
    return Cite(
        citation.alias, citation.start, citation.end, lines, citation.url, citation.missing,
        citation.symbol, citation.note,
    )  # fmt: skip


@lru_cache(maxsize=128)
def source_of(alias: str) -> str:
    """Who wrote the file: ``PEFT`` or ``author``."""
    try:
        return SOURCES.get(catalog.load().reference(alias).source.id, "author")
    except RefsError:
        return "author"


def pages(words: str) -> tuple[tuple[str, str | None], ...]:
    """(place, its page) of every place of a reference in a list of them; without a page where it has no lines."""
    try:
        return tuple(places(catalog.load(), words))
    except RefsError:
        return ((words, None),) if words else ()


def with_quotes(run: Run) -> Run:
    """``run`` with the subject's sources resolved into quotes."""
    quotes = dict(run.subject.quotes)
    for (variant, aspect), (path, symbol) in sorted(run.subject.sources.items(), key=str):
        quotes[variant, aspect] = _subject_cite(Path(path), symbol, run.root)
    parts = dict(run.subject.docstring_parts) or _docstring_parts(run)
    subject = dataclasses.replace(run.subject, sources={}, quotes=quotes, docstring_parts=parts)
    return dataclasses.replace(run, subject=subject)


def _docstring_parts(run: Run) -> dict[str, tuple[DocstringPart, ...]]:
    """Per variant, the docstrings around the places that the subject names, each with its file and first line."""
    found: dict[str, dict[DocstringPart, None]] = {}
    for (variant, _), (path, symbol) in sorted(run.subject.sources.items(), key=str):
        alias = one_line(str(_shown(Path(path), run.root)))
        for line, words in docstrings(Path(path), symbol):
            found.setdefault(variant, {})[DocstringPart(alias, line, words[:LONGEST_DOCSTRING])] = None
    return {variant: tuple(parts) for variant, parts in found.items()}


def _subject_cite(path: Path, symbol: str, root: Path) -> Cite:
    shown = one_line(str(_shown(path, root)))
    if not symbol:
        return Cite(shown, None, None, missing="the subject names the file, and no symbol in it")
    try:
        return _cite(cite_file(path, symbol, alias=shown))
    except Exception as error:  # a subject may point anywhere
        return Cite(
            shown, None, None, missing=f"{shown} cannot be read: {type(error).__name__}", symbol=symbol
        )


def _shown(path: Path, root: Path) -> Path:
    """``path`` from the root, from its site-packages, or by its name: never the layout of a machine."""
    absolute = path.absolute()
    for base in (root.absolute(), root.absolute().resolve()):
        if absolute.is_relative_to(base) and "site-packages" not in absolute.relative_to(base).parts:
            return absolute.relative_to(base)
    parts = absolute.parts
    if "site-packages" in parts:
        return Path(*parts[len(parts) - parts[::-1].index("site-packages") :])
    return Path(absolute.name)


def subject_cites(subject: Subject, variant: str, aspect: str) -> tuple[Cite, ...]:
    """The subject's lines for one aspect, or of the one that has the same; none where it names no place for it."""
    for candidate in (aspect, SAME_LINES.get(aspect, aspect)):
        if cite := subject.quotes.get((variant, candidate)):
            return (cite,)
    return ()


def quoted_aspects(subject: Subject, variant: str) -> list[str]:
    """The aspects of a variant for which the subject names a place, in the review's order."""
    named = {a for v, a in subject.quotes if v == variant}
    return [a for a in ASPECTS if a in named] + sorted(named - set(ASPECTS))


def variants_of(run: Run) -> list[str]:
    """The variants that were asked about, in the review's order."""
    order = [v.id for v in run.variants]
    asked = [c.variant for c in run.claims] + [key.variant for key in run.planned]
    return sorted_variants([*order, *asked], order)

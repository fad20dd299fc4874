"""What the references and the subject do: a table of facts, quotes, and where the references disagree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS, QUOTED
from reports import cites, facts
from reports.model import Cite, Run
from reports.text import listed


@dataclass(frozen=True)
class FactRow:
    """One aspect of what the references do; each cell a fact and where it stands."""

    aspect: str
    cells: tuple[tuple[str, tuple[Cite, ...]], ...]


@dataclass(frozen=True)
class Quoted:
    """An aspect and its quotes."""

    aspect: str
    cites: tuple[Cite, ...]


def fact_rows(run: Run, variant: str) -> Iterable[FactRow]:
    told = next((v.reference_facts for v in run.variants if v.id == variant), {})
    for aspect in QUOTED:
        row = told.get(aspect) or facts.facts().get(variant, {}).get(aspect, {})
        found = cites.reference_cites(variant, aspect)
        yield FactRow(
            ASPECTS[aspect],
            tuple((row.get(s, ""), tuple(_by_source(found, s))) for s in facts.SOURCES.values()),
        )


def _by_source(found: Sequence[Cite], source: str) -> Iterable[Cite]:
    """The cites of one source, each place once."""
    seen = set()
    for cite in found:
        if cites.source_of(cite.alias) == source and cite.label not in seen:
            seen.add(cite.label)
            yield cite


def subject_quotes(run: Run, variant: str) -> Iterable[Quoted]:
    """The subject's places; aspects that share one are named together."""
    by_cite: dict[Cite, list[str]] = {}
    for aspect in cites.quoted_aspects(run.subject, variant):
        by_cite.setdefault(run.subject.quotes[variant, aspect], []).append(ASPECTS.get(aspect, aspect))
    for cite, aspects in by_cite.items():
        yield Quoted(listed(aspects), (cite,))


@dataclass(frozen=True)
class Disputed:
    """One disagreement of the references: what, how much, and the places with their pages."""

    words: str
    places: tuple[tuple[str, str | None], ...]


def disagreements(run: Run, variant: str) -> Iterable[Disputed]:
    """Where the references themselves disagree, in the words of the catalogue of disagreements."""
    for entry in run.reference_disagreements:
        if entry.get("variant") in (variant, None):
            said = [str(entry[k]) for k in ("title", "what", "summary", "size", "how_much") if entry.get(k)]
            known = f" (`{entry['id']}`)" if entry.get("id") else ""
            yield Disputed(". ".join(dict.fromkeys(said)) + known, cites.pages(str(entry.get("where") or "")))

"""Which oracles there are for a variant, and where each comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from oracles.authors.availability import AUTHORS, Author, available
from oracles.authors.base import AuthorImplementation
from oracles.authors.recordings import folder, made_with
from oracles.authors.replay import Absent, Replay
from oracles.equation import Equation
from oracles.oracle import Oracle
from oracles.peft import Peft

Kind = Literal["live", "recorded", "equation"]
AUTHOR = "author"  # the default author of a variant, and the word for all of them


@dataclass(frozen=True)
class Provenance:
    """Where an oracle comes from: an entry of `oracles` in audit.json."""

    kind: Kind
    title: str
    package: str | None = None
    version: str | None = None
    repo: str | None = None
    commit: str | None = None
    sha256: str | None = None
    licence: str | None = None
    recorded_on: str | None = None


@dataclass(frozen=True)
class Entry:
    """One oracle of some variants. ``make`` builds it, ``provenance`` says where it is from (None: absent);
    neither is called before the oracle is asked for. ``offers`` tells the modes it has (None: the plain form)."""

    id: str
    variants: frozenset[str]
    make: Callable[[], Oracle]
    provenance: Callable[[], Provenance | None]
    offers: Callable[[str | None], bool] = lambda mode: True

    @property
    def is_author(self) -> bool:
        """Whether this is the authors' own code."""
        return self.id.startswith(AUTHOR)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every oracle, in the order in which the review shows them; an author's once per variant."""
    peft = Provenance(
        "live", f"PEFT {Peft.version}", package="peft", version=Peft.version, licence="Apache-2.0"
    )
    paper = Provenance("equation", "equations (float64)")
    return (
        Entry("peft", Peft.variants, Peft, lambda: peft),
        Entry("paper", Equation.variants, Equation, lambda: paper),
        *sorted(map(_author_entry, AUTHORS), key=lambda entry: entry.id),
    )


def ids() -> list[str]:
    """The names of the oracles, each once."""
    return list(dict.fromkeys(entry.id for entry in entries()))


def named(name: str) -> Sequence[str]:
    """The oracles that a word of `--oracle` means: `author` means all of the authors'."""
    return [id_ for id_ in ids() if id_ == name or (name == AUTHOR and id_.startswith(AUTHOR))]


def find(id_: str, variant: str) -> Entry:
    """The oracle of that id for a variant. Raises KeyError."""
    for entry in entries():
        if entry.id == id_ and variant in entry.variants:
            return entry
    raise KeyError(f"there is no oracle {id_!r} of {variant}")


def oracle_of(author: Author) -> Oracle:
    """The authors' code where it is live, its recording where that stands in, else an oracle that says why not."""
    if author.kind == "live":
        return author.implementation()
    return Replay(author) if author.kind == "recorded" else Absent(author)


def _author_entry(kind: type[AuthorImplementation]) -> Entry:
    def author() -> Author:
        return next(a for a in available(kind.variant) if a.id == kind.oracle)

    return Entry(
        kind.oracle,
        frozenset({kind.variant}),
        lambda: oracle_of(author()),
        lambda: _provenance(author()),
        kind.has,
    )


def _provenance(author: Author) -> Provenance | None:
    if author.kind == "absent":
        return None
    source, pin = author.provenance.source, author.provenance.pin
    packaged = "/" not in source
    recorded = author.kind == "recorded"
    return Provenance(
        "recorded" if recorded else "live",
        f"{source} {author.provenance.path.rpartition('/')[2]}",
        package=source if packaged else None,
        version=pin if packaged else None,
        repo=None if packaged else source,
        commit=None if packaged else pin,
        sha256=author.provenance.sha256,
        licence=author.provenance.licence,
        recorded_on=made_with(folder(author.variant, author.id)) if recorded else None,
    )

"""Which of the authors' oracles there are for a variant: live, recorded, or absent and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from oracles.authors.base import AuthorImplementation
from oracles.authors.delora import DeloraAuthor
from oracles.authors.dora import DoraAuthor
from oracles.authors.family import compute, family
from oracles.authors.hra import HraControlAuthor, HraNluAuthor
from oracles.authors.hra_llama import HraLlamaAuthor, HraLlamaGsAuthor
from oracles.authors.ia3 import Ia3Author
from oracles.authors.lora import LoraAuthor
from oracles.authors.pissa import PissaAuthor
from oracles.authors.recorded_case import RecordedCase
from oracles.authors.recordings import folder, read
from oracles.implementation import Unsupported
from refs import catalog as catalogue
from refs.errors import CatalogError, NotAvailableError, RefsError
from refs.verify import check

__all__ = ["AUTHORS", "Author", "Provenance", "available", "cases"]

AUTHORS: tuple[type[AuthorImplementation], ...] = (
    LoraAuthor,
    PissaAuthor,
    DoraAuthor,
    Ia3Author,
    HraControlAuthor,
    HraNluAuthor,
    HraLlamaAuthor,
    HraLlamaGsAuthor,
    DeloraAuthor,
)


@dataclass(frozen=True)
class Provenance:
    """Where an oracle comes from: the entry of `oracles` in audit.json."""

    alias: str
    source: str  # package, or owner/name
    pin: str  # version, or commit
    path: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Author:
    """One oracle of the authors; ``kind`` is live, recorded or absent, ``reason`` says why it is not live."""

    id: str
    variant: str
    kind: str
    reason: str
    provenance: Provenance
    make: Callable[[], AuthorImplementation] = field(compare=False, repr=False)
    replay: Callable[[], list[RecordedCase]] = field(compare=False, repr=False)

    def implementation(self) -> AuthorImplementation:
        """The live oracle. Raises NotAvailableError where it is not live."""
        if self.kind != "live":
            raise NotAvailableError(f"{self.variant}/{self.id} is {self.kind}: {self.reason}")
        return self.make()

    def cases(self) -> list[RecordedCase]:
        """The family of cases, computed now or read. Raises NotAvailableError when absent."""
        if self.kind == "absent":
            raise NotAvailableError(f"{self.variant}/{self.id} is absent: {self.reason}")
        return live_cases(self.make()) if self.kind == "live" else self.replay()


def available(
    variant: str,
    catalog: catalogue.Catalog | None = None,
    cache: Path | None = None,
    recordings: Path | None = None,
) -> list[Author]:
    """The oracles of the authors of ``variant``, the default (`author`) first; never raises for files."""
    catalog = catalog or catalogue.load()
    return [_author(kind, catalog, cache, recordings) for kind in AUTHORS if kind.variant == variant]


def cases(oracle: str, variant: str) -> list[RecordedCase]:
    """The cases of one oracle, live or recorded. Raises CatalogError (unknown), NotAvailableError."""
    for author in available(variant):
        if author.id == oracle:
            return author.cases()
    raise CatalogError(f"there is no oracle `{oracle}` of the authors of `{variant}`")


def live_cases(author: AuthorImplementation) -> list[RecordedCase]:
    """Every case of the family that the author's code supports, computed now."""
    made = []
    for case in family(author.variant, author.oracle):
        try:
            made.append(compute(author, case))
        except Unsupported:
            continue
    return made


def _author(
    kind: type[AuthorImplementation], catalog: catalogue.Catalog, cache: Path | None, recordings: Path | None
) -> Author:
    reference = catalog.reference(kind.alias)
    source = reference.source
    provenance = Provenance(
        kind.alias, source.name, source.pin, reference.path, reference.sha256, source.licence
    )
    where = folder(kind.variant, kind.oracle, recordings)
    state, reason = _state(kind, catalog, cache, where)
    return Author(
        kind.oracle,
        kind.variant,
        state,
        reason,
        provenance,
        make=lambda: kind(catalog, cache),
        replay=lambda: read(where, provenance_of(catalog, kind)),
    )


def provenance_of(catalog: catalogue.Catalog, kind: type[AuthorImplementation]) -> dict[str, str]:
    """What a manifest must say of the files that were recorded."""
    reference = catalog.reference(kind.alias)
    source = reference.source
    files = {f"sha256 of {alias}": catalog.reference(alias).sha256 for alias in (kind.alias, *kind.needs)}
    return {
        "source": source.name,
        "pin": source.pin,
        "licence": source.licence,
        "path": reference.path,
        **files,
    }


def _state(
    kind: type[AuthorImplementation], catalog: catalogue.Catalog, cache: Path | None, folder: Path
) -> tuple[str, str]:
    """A file that was tampered with is not replaced by its recording: it is absent, and says so."""
    statuses = [check(catalog, alias, cache) for alias in (kind.alias, *kind.needs)]
    for status in statuses:
        if not status.fine:
            return "absent", status.sentence
    why = next((status.sentence for status in statuses if status.state == "absent"), "")
    if not why:
        return "live", ""
    try:
        read(folder, provenance_of(catalog, kind))
    except RefsError as error:
        return "absent", f"{why}; {error}"
    return "recorded", why

"""Are the references the pinned ones? Per file: ok, absent, changed; per changed symbol, what it concerns."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from refs.catalog import Catalog, Cite, Reference
from refs.errors import HashMismatchError, NotAvailableError, RefsError, SourceError
from refs.locate import locate, sha256_of
from refs.quotes import symbol_digest

__all__ = ["Drift", "Status", "check", "symbol_digests", "write_digests"]


@dataclass(frozen=True)
class Drift:
    """A cited symbol that is not what was pinned, the aspects quoted from it and the oracles that run it."""

    symbol: str
    what: str  # "changed" | "missing"
    aspects: tuple[str, ...]  # "variant.aspect"
    oracles: tuple[str, ...]  # "variant/oracle"


@dataclass(frozen=True)
class Status:
    """One reference: ``state`` is ok, absent, drift (a package's differs), refused (a synced one does)."""

    reference: Reference
    state: str
    sentence: str
    drifts: tuple[Drift, ...] = ()

    @property
    def fine(self) -> bool:
        """Nothing contradicts the pin; an absent file does not, recordings stand in for it."""
        return self.state in ("ok", "absent")


def check(catalog: Catalog, alias: str, cache: Path | None = None) -> Status:
    """The status of one reference; never raises for what is wrong with the file."""
    reference = catalog.reference(alias)
    try:
        path = locate(reference, cache)
        if sha256_of(path) == reference.sha256:
            return Status(reference, "ok", f"{reference.source.name} {reference.source.pin}")
    except NotAvailableError as error:
        return Status(reference, "absent", str(error))
    except RefsError as error:
        return Status(reference, "refused", str(error), _all_concerned(catalog, reference, error))
    drifts = tuple(_drifts(catalog, reference, path))
    return Status(reference, "drift", _drift_sentence(reference, drifts), drifts)


def symbol_digests(catalog: Catalog, alias: str, cache: Path | None = None) -> dict[str, str]:
    """The digest of every symbol cited from one file, as it is on this machine. Raises RefsError."""
    path = locate(catalog.reference(alias), cache)
    cited = sorted({cite.symbol for cite in catalog.cites if cite.alias == alias})
    return {symbol: symbol_digest(path, symbol) for symbol in cited if path.suffix == ".py"}


def write_digests(catalog: Catalog, target: Path, cache: Path | None = None) -> int:
    """Write digests.json from pinned files only. Raises HashMismatchError or NotAvailableError otherwise."""
    table: dict[str, dict[str, str]] = {}
    for alias in sorted({cite.alias for cite in catalog.cites}):
        status = check(catalog, alias, cache)
        if status.state != "ok":
            raise HashMismatchError(f"the digests are taken from pinned files only: {status.sentence}")
        if digests := symbol_digests(catalog, alias, cache):
            table[alias] = digests
    target.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sum(map(len, table.values()))


def _drifts(catalog: Catalog, reference: Reference, path: Path) -> Iterable[Drift]:
    for symbol, pinned in catalog.digests.get(reference.alias, {}).items():
        try:
            what = "changed" if symbol_digest(path, symbol) != pinned else ""
        except SourceError:
            what = "missing"
        if what:
            cites = [c for c in catalog.cites if (c.alias, c.symbol) == (reference.alias, symbol)]
            yield _drift(symbol, what, cites, reference)


def _drift(symbol: str, what: str, cites: list[Cite], reference: Reference) -> Drift:
    aspects = tuple(dict.fromkeys(f"{c.variant}.{c.aspect}" for c in cites))
    oracles = tuple(dict.fromkeys(f"{c.variant}/{reference.oracle}" for c in cites if reference.oracle))
    return Drift(symbol, what, aspects, oracles)


def _all_concerned(catalog: Catalog, reference: Reference, error: RefsError) -> tuple[Drift, ...]:
    """A refused file concerns everything cited from it."""
    cites = [c for c in catalog.cites if c.alias == reference.alias]
    what = "changed" if isinstance(error, HashMismatchError) else "missing"
    return (_drift("<module>", what, cites, reference),)


def _drift_sentence(reference: Reference, drifts: tuple[Drift, ...]) -> str:
    name, pinned = reference.source.name, reference.source.pin
    which = ", ".join(f"`{d.symbol}` {d.what}" for d in drifts) or "no cited symbol changed"
    installed = f"{_installed_version(name)} is installed"
    return f"{reference.alias} is not the file of {name} {pinned} ({installed}): {which}"


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "an unknown version"

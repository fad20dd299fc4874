"""How the answers to a claim run through the releases of a library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.survey.answers import Answer
from reports.model import Audit, Claim

HOLDS, FAILS, NOT_ASKED = "o", "x", "-"
STATES = {"pass": HOLDS, "declared": HOLDS, "not_applicable": NOT_ASKED}  # every other outcome is a failure


@dataclass(frozen=True)
class Asked:
    """A release and its audit."""

    release: str
    answer: Answer
    audit: Audit

    @property
    def claims(self) -> dict[str, Claim]:
        return {claim.id: claim for claim in self.audit.run.claims}


@dataclass(frozen=True)
class Run:
    """Neighbouring releases with the same answer."""

    state: str
    first: str
    last: str

    @property
    def told(self) -> str:
        word = {HOLDS: "holds", FAILS: "fails", NOT_ASKED: "not offered"}[self.state]
        return f"{word} {self.first}" if self.first == self.last else f"{word} {self.first} to {self.last}"


@dataclass(frozen=True)
class Strip:
    """Claims of one method with the same answers throughout: ``states``, one letter a release; ``why``: what was said
    of the last failure."""

    variant: str
    claims: tuple[str, ...]
    states: str
    runs: tuple[Run, ...]
    why: str

    @property
    def changes(self) -> bool:
        """Whether it holds in one release and fails in another."""
        return HOLDS in self.states and FAILS in self.states

    @property
    def holds(self) -> bool:
        return HOLDS in self.states and FAILS not in self.states

    @property
    def fails(self) -> bool:
        return FAILS in self.states and HOLDS not in self.states

    @property
    def words(self) -> str:
        """The releases in words; those that do not offer it are told by the strip."""
        return ", ".join(run.told for run in self.runs if run.state != NOT_ASKED)


def numbers(release: str) -> tuple[int, ...]:
    """A release as numbers, to sort by."""
    return tuple(int(n) for n in re.findall(r"\d+", release))


def strips_of(asked: Sequence[Asked]) -> list[Strip]:
    """Every claim's answers, in the order of ``asked``; claims of one method that answer alike together."""
    by_release = [a.claims for a in asked]
    ids = list(dict.fromkeys(id_ for claims in by_release for id_ in claims))
    alike: dict[tuple[str, str, str], list[str]] = {}
    for id_ in ids:
        found = [claims.get(id_) for claims in by_release]
        states = "".join(NOT_ASKED if c is None else STATES.get(c.outcome, FAILS) for c in found)
        variant = next(c.variant for c in found if c is not None)
        alike.setdefault((variant, states, _why(found)), []).append(id_)
    releases = [a.release for a in asked]
    return [
        Strip(variant, tuple(ids), states, tuple(_runs(states, releases)), why)
        for (variant, states, why), ids in alike.items()
    ]


def _why(found: Sequence[Claim | None]) -> str:
    """What is said of the last failure."""
    failed = [c for c in found if c is not None and c.outcome not in STATES]
    if not failed:
        return ""
    last = failed[-1]
    if last.diagnosis:
        return last.diagnosis.summary
    if last.reason:
        return re.sub(r" \(at [^)]*\)", "", last.reason)
    return f"{last.witness.quantity}: {last.witness.actual}" if last.witness else str(last.outcome)


def _runs(states: str, releases: Sequence[str]) -> list[Run]:
    found = []
    for state, group in groupby(zip(states, releases, strict=True), key=lambda pair: pair[0]):
        own = [release for _, release in group]
        found.append(Run(state, own[0], own[-1]))
    return found

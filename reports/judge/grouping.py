"""Which claims tell of one and the same defect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reports.model import CheckInfo, Claim, Declaration, Diagnosis

Key = tuple[str | None, ...]
Kind = str  # "difference" "error" "declared" "unverified" "mode_missing" "not_offered"
# Questions of yes or no, which many mistakes answer alike: where what they follow is broken, that is the explanation.
SAYS_LITTLE = {"step0.dead_parameters", "training.alive", "init.identity", "dropout.expectation"}
# Methods without which an aspect cannot be told of any implementation; the others are a matter of taste.
NEEDED_METHODS = {"save", "load"}


def covering(declarations: Iterable[Declaration], claim: Claim) -> Declaration | None:
    """The declaration that speaks of this claim, if one does."""
    return next((d for d in declarations if d.covers(claim)), None)


def is_of_a_check(diagnosis: Diagnosis) -> bool:
    """Whether a check says it of itself ("forward.guard"), rather than the mistakes catalogue ("lora.no_scale")."""
    return diagnosis.source == "check"


def is_missing_mode(claim: Claim) -> bool:
    """A mode of the references that the subject lacks: a deviation although nothing was compared."""
    return claim.outcome == "not_applicable" and claim.cause == "mode_missing"


def is_special(claim: Claim) -> bool:
    """Not applicable, and yet a gap of the subject's."""
    method = claim.cause == "not_offered" and claim.detail in NEEDED_METHODS
    return is_missing_mode(claim) or (claim.outcome == "not_applicable" and method)


class Grouping:
    """The claims of one variant that do not hold, put together defect by defect."""

    def __init__(
        self, claims: Iterable[Claim], checks: Mapping[str, CheckInfo], declarations: Iterable[Declaration]
    ) -> None:
        self.claims, self.checks = list(claims), checks
        self.declarations = list(declarations)
        self.broken = [c for c in self.claims if c.outcome in ("fail", "error")]
        self.held = {(c.check, c.oracle) for c in self.claims if c.outcome == "pass"}

    def groups(self) -> list[tuple[Kind, list[Claim]]]:
        """Every defect with its claims, in the order of the first claim of each."""
        groups: dict[Key, list[Claim]] = {}
        for claim in self.claims:
            if key := self.key(claim):
                groups.setdefault(key, []).append(claim)
        return [(self._kind(key, members), members) for key, members in groups.items()]

    def key(self, claim: Claim) -> Key | None:
        """What the claim is grouped by; None where it holds."""
        if claim.outcome in ("fail", "error"):
            return self._defect(claim, frozenset())
        if claim.outcome == "declared":
            declared = covering(self.declarations, claim)
            return ("declared", declared.reason if declared else claim.reason)
        if claim.outcome == "unverified":
            return ("unverified", claim.reason)
        return (claim.cause, claim.reason) if is_special(claim) else None

    def _defect(self, claim: Claim, seen: frozenset[str]) -> Key:
        # What a check says of itself, or with a yes or a no, explains nothing where what it follows is broken already.
        parents = [p for p in self._parents(claim) if p.check not in seen]
        own = claim.diagnosis is not None and is_of_a_check(claim.diagnosis)
        if parents and (own or claim.check in SAYS_LITTLE):
            return self._defect(parents[0], seen | {claim.check})
        if claim.diagnosis:
            return ("mistake", claim.diagnosis.mistake)
        for other in self.broken:
            if other.check == claim.check and other.diagnosis and claim.outcome == "fail":
                return ("mistake", other.diagnosis.mistake)
        if parents:
            return self._defect(parents[0], seen | {claim.check})
        if claim.outcome == "error":
            return ("error", claim.cause, claim.detail)
        return ("check", claim.check)

    def _parents(self, claim: Claim) -> list[Claim]:
        """Broken claims that explain this one: of a check that it follows, against the same oracle."""
        info = self.checks.get(claim.check)
        parents: list[Claim] = []
        for check in info.follows if info else ():
            candidates = [c for c in self.broken if c.check == check != claim.check]
            same = [c for c in candidates if c.oracle == claim.oracle]
            parents += same or ([] if (check, claim.oracle) in self.held else candidates)
        return [p for p in parents if claim.outcome == "fail" or p.outcome == "error"]

    def _kind(self, key: Key, members: list[Claim]) -> Kind:
        if key[0] in ("declared", "unverified", "mode_missing", "not_offered"):
            return key[0]
        return "error" if all(c.outcome == "error" for c in members) else "difference"

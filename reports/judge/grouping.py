"""Which claims tell of one and the same defect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from reports.model import CheckInfo, Claim, Declaration, Diagnosis
from reports.order import ASPECTS

Key = tuple[str, str]
Kind = str  # "difference" "error" "declared" "unverified" "mode_missing" "not_offered"
# How the reason of a claim begins whose oracle is catalogued to differ from the reference of record.
DISAGREE = "the references disagree here"
# Questions of yes or no, which many mistakes answer alike: where what they follow is broken, that is the explanation.
SAYS_LITTLE = {"step0.dead_parameters", "training.alive", "init.identity", "dropout.expectation"}
MODE_MISSING, NOT_OFFERED = "mode missing:", "not offered: save_load"


def question(claim: Claim) -> str:
    """The claim without its oracle: what was asked of all the references alike, the mode included."""
    return claim.id.removesuffix(f"-{claim.oracle}]")


def covering(declarations: Iterable[Declaration], claim: Claim) -> Declaration | None:
    """The declaration that speaks of this claim, if one does."""
    for d in declarations:
        pairs = ((claim.check, d.check), (claim.variant, d.variant), (claim.oracle, d.oracle))
        if all(fnmatchcase(value, pattern) for value, pattern in pairs):
            return d
    return None


def is_of_a_check(diagnosis: Diagnosis) -> bool:
    """Whether a check says it of itself ("forward.guard"), rather than the mistakes catalogue ("lora.no_scale")."""
    return diagnosis.mistake.partition(".")[0] in ASPECTS


def is_special(claim: Claim) -> bool:
    """Not applicable, and yet a gap of the subject's."""
    reason = claim.reason or ""
    return claim.outcome == "not_applicable" and reason.startswith((MODE_MISSING, NOT_OFFERED))


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
        reason = claim.reason or ""
        if claim.outcome in ("fail", "error"):
            return self._defect(claim, frozenset())
        if claim.outcome == "declared":
            declared = covering(self.declarations, claim)
            return ("declared", declared.reason if declared else reason)
        if claim.outcome == "unverified":
            return ("unverified", reason)
        return (reason.split(":")[0], reason) if is_special(claim) else None

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
            return ("error", re.sub(r"\d+|(?<=adapt_model of )\w+", "#", claim.reason or ""))
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
        if key[0] in ("mode missing", "not offered"):
            return key[0].replace(" ", "_")
        if key[0] in ("declared", "unverified"):
            return key[0]
        return "error" if all(c.outcome == "error" for c in members) else "difference"

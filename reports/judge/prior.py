"""The prior review matched with what this run found, and what a run becomes for the next round."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from refs.vocabulary import Grade, Severity, Tag
from reports.judge.verdicts import is_unverified
from reports.model import Audit, Claim, Prior, PriorFinding, PriorVariant

FAITHFUL = ("Faithful", "Faithful-with-doc-gap")


def prior_of(audit: Audit, title: str) -> Prior:
    """What ``audit`` said, as the next round's prior review."""
    claims = {c.id: c for c in audit.run.claims}
    variants = {}
    for variant, verdict in audit.verdicts.items():
        mine = [f for f in audit.findings if f.variant == variant]
        found = [f for f in mine if not is_unverified(f, audit.run.claims)]
        told = tuple(
            PriorFinding(f.id, f.title, f.tag, *_asked([claims[i] for i in f.claims])) for f in found
        )
        variants[variant] = PriorVariant(variant, verdict.verdict, told)
    return Prior(title, variants)


def _asked(claims: Sequence[Claim]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checks and the mistakes that a finding is about: of its first claim, and of what explains it.

    The other claims show consequences; another defect can have the same ones.
    """
    mistakes = {c.diagnosis.mistake: None for c in claims if c.diagnosis}
    checks = {c.check: None for c in claims if c.diagnosis or c.check == claims[0].check}
    return tuple(checks), tuple(mistakes)


def matching(prior: PriorVariant | None, claims: Sequence[Claim]) -> PriorFinding | None:
    """The prior finding that tells of the defect behind ``claims``, if any does."""
    return next((old for old in (prior.findings if prior else ()) if tells_of(old, claims)), None)


def tells_of(old: PriorFinding, claims: Sequence[Claim]) -> bool:
    """Whether a prior finding is about the defect behind ``claims``: its mistake, else its check."""
    checks, mistakes = _asked(claims)
    if old.mistakes and mistakes:
        return bool(set(old.mistakes) & set(mistakes))
    return any(asks(old, check) for check in checks)


def asks(old: PriorFinding, check: str) -> bool:
    """Whether the check asks what the prior finding tells of."""
    return any(fnmatchcase(check, pattern) for pattern in old.checks)


def contradicts(prior: PriorVariant | None, known: PriorFinding | None, tag: Tag, severity: Severity) -> bool:
    """Whether a finding shows that the prior review was wrong."""
    if prior is None:
        return False
    if known is not None and (known.tag == "BUG") != (tag == "BUG"):
        return True
    grave: bool = severity in ("critical", "major")
    verdict: Grade = prior.verdict
    return verdict in FAITHFUL and (grave or tag == "BUG")

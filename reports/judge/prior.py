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
            PriorFinding(
                f.id,
                f.title,
                f.tag,
                *_asked([claims[i] for i in f.claims], f.mistake),
                {i: claims[i].examples for i in f.claims},
            )
            for f in found
        )
        variants[variant] = PriorVariant(variant, verdict.verdict, told)
    return Prior(title, variants, (audit.run.subject.name,))


def _asked(claims: Sequence[Claim], mistake: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checks and the mistakes that a finding is about: of its first claim, and of what names its mistake.

    The other claims show consequences; another defect can have the same ones.
    """
    checks = {c.check: None for c in claims if names(c, mistake) or c.check == claims[0].check}
    return tuple(checks), (mistake,) if mistake else ()


def names(claim: Claim, mistake: str | None) -> bool:
    """Whether the claim says that the mistake is what it fails by."""
    told = (claim.diagnosis, *claim.further) if claim.diagnosis else claim.further
    return any(d.mistake == mistake for d in told)


def matching(prior: PriorVariant | None, claims: Sequence[Claim], mistake: str | None) -> PriorFinding | None:
    """The prior finding that tells of the defect behind ``claims``, if any does."""
    told = prior.findings if prior else ()
    return next((old for old in told if tells_of(old, claims, mistake)), None)


def tells_of(old: PriorFinding, claims: Sequence[Claim], mistake: str | None) -> bool:
    """Whether a prior finding is about the defect behind ``claims``: its mistake, else its check."""
    checks, mistakes = _asked(claims, mistake)
    if old.mistakes and mistakes:
        return any(fnmatchcase(m, pattern) for m in mistakes for pattern in old.mistakes)
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

"""Findings add up to one verdict per variant (DESIGN §7): the worst one decides."""

from __future__ import annotations

from collections.abc import Sequence

from refs.vocabulary import ASPECTS, SEVERITIES, Grade, Severity
from reports import cites
from reports.judge.grouping import covering, is_missing_mode
from reports.model import Audit, Claim, Finding, Key, Prior, Run, Verdict
from reports.order import rank
from reports.text import listed

FAITHFUL: tuple[Grade, ...] = ("Faithful", "Faithful-with-doc-gap")
GRADE: dict[Severity, Grade] = {
    "critical": "Buggy",
    "major": "Partial",
    "minor": "Faithful-with-doc-gap",
    "none": "Faithful",
}
NO_REFERENCE = {
    "init": "the initial state agrees with no reference",
    "step0": "the step-0 gradient agrees with no reference",
    "forward": "the forward pass agrees with no reference",
    "scale": "the scale factor agrees with no reference",
    "training": "training goes where no reference's goes",
}
GRADIENTS_ALONE = "the outputs are the references', and the gradients are no reference's"


def verdicts(run: Run, findings: Sequence[Finding], prior: Prior | None = None) -> dict[str, Verdict]:
    """One verdict per variant asked about, in the review's order."""
    if not run.claims:
        return {}  # of a run that ended before anything was asked there is none
    return {
        v: _verdict(run, v, [f for f in findings if f.variant == v], prior) for v in cites.variants_of(run)
    }


def _verdict(run: Run, variant: str, findings: Sequence[Finding], prior: Prior | None) -> Verdict:
    claims = [c for c in run.claims if c.variant == variant]
    applicable = [c for c in claims if c.outcome != "not_applicable"]
    verified = [c for c in applicable if c.outcome in ("pass", "declared")]
    decisive = min(findings, key=lambda f: rank(f.severity, SEVERITIES), default=None)
    missing = [key for key in missing_claims(run) if key.variant == variant]
    because = _because(decisive, claims) if decisive else ""
    grade, reason = _grade(decisive, because, len(verified), len(applicable), len(missing))
    if grade in FAITHFUL and (held_back := _at_best_partial(claims)):
        grade, reason = held_back
    if grade == "Faithful" and findings:
        reason += f"; every difference is documented ({listed(f.id for f in findings)})"
    old = prior.variants.get(variant) if prior else None
    return Verdict(
        prior=old.verdict if old else None,
        verdict=grade,
        reason=reason,
        new_bugs=sum(f.new if old else f.tag == "BUG" for f in findings),
        doc_gaps=_doc_gaps(grade, findings, claims),
        verified=len(verified),
        applicable=len(applicable) + len(missing),
    )


def _at_best_partial(claims: Sequence[Claim]) -> tuple[Grade, str] | None:
    """Why a variant without a grave finding is Partial all the same; None where it is not."""
    if failed := audit_failures(claims):
        return "Partial", f"the audit itself failed on {len(failed)} of {len(claims)} claims"
    if silent := _never_verified(claims):
        return "Partial", f"no claim on the {ASPECTS[silent]} could be verified"
    return None


def _doc_gaps(grade: Grade, findings: Sequence[Finding], claims: Sequence[Claim]) -> int:
    """How many differences are not stated; where that alone decides the verdict, what is not declared counts, too."""
    gaps = [f for f in findings if is_doc_gap(f, claims)]
    return len(gaps or findings) if grade == "Faithful-with-doc-gap" else len(gaps)


def audit_failures(claims: Sequence[Claim]) -> list[Claim]:
    """The claims on which the audit itself failed: its own mistake, no finding of the subject."""
    return [c for c in claims if c.cause == "audit_failed"]


def _never_verified(claims: Sequence[Claim]) -> str | None:
    """An aspect without which nothing can be called faithful, asked about and answered by no claim at all."""
    for aspect in ("shapes", "init", "step0", "forward"):
        asked = [c for c in claims if c.aspect == aspect]
        if asked and not any(c.outcome in ("pass", "declared", "fail") for c in asked):
            return aspect
    return None


def _grade(
    decisive: Finding | None, because: str, verified: int, applicable: int, missing: int
) -> tuple[Grade, str]:
    grave = ("critical", "major") if missing else ("critical", "major", "minor")
    if decisive and decisive.severity in grave:
        return GRADE[decisive.severity], because
    if missing:
        return "Partial", f"{missing} claims are missing"
    if verified == 0:
        return "Partial", "no claim was verified"
    if verified < applicable:
        return (
            "Faithful-with-doc-gap",
            f"{verified} of {applicable} claims verified: what differs is not declared",
        )
    return "Faithful", f"{verified} of {applicable} claims verified"


def _because(finding: Finding, claims: Sequence[Claim]) -> str:
    """The decisive finding in one line."""
    title = finding.title.rstrip(". ")
    own = [c for c in claims if c.id in finding.claims]
    wrong = finding.tag == "BUG" and finding.severity == "critical" and any(c.outcome == "fail" for c in own)
    if wrong and finding.aspect in NO_REFERENCE:
        alone = finding.aspect == "forward" and _of_gradients_alone(own)
        told = GRADIENTS_ALONE if alone else NO_REFERENCE[finding.aspect]
        return f"{told} ({finding.id}: {title})"
    return f"{title} ({finding.id})"


def _of_gradients_alone(claims: Sequence[Claim]) -> bool:
    """Whether outputs are the references', and what fails is gradients and what follows from them."""
    return all(c.aspect in ("step0", "training") or "gradient" in c.check for c in claims)


def is_unverified(finding: Finding, claims: Sequence[Claim]) -> bool:
    """Whether the finding says that something could not be told, rather than that it differs."""
    own = [c for c in claims if c.id in finding.claims]
    silent = [c for c in own if c.outcome in ("unverified", "not_applicable")]
    return len(silent) == len(own) and not any(map(is_missing_mode, silent))


def is_doc_gap(finding: Finding, claims: Sequence[Claim]) -> bool:
    """A difference that the subject's docstring does not state; what could not be told is none."""
    return finding.tag in ("OK-undoc", "STYLE") and not is_unverified(finding, claims)


def audit_exit_code(audit: Audit) -> int:
    """0: every applicable claim verified or declared; 1: something deviates, is unverified, or is stale, or nothing at
    all was verified; 3: the audit itself failed."""
    run = audit.run
    if audit_failures(run.claims):
        return 3
    if any(c.outcome in ("fail", "unverified", "error") for c in run.claims) or missing_claims(run):
        return 1
    if nothing_verified(run):
        return 1
    undeclared = [c for c in run.claims if is_missing_mode(c) and not covering(run.declarations, c)]
    stale = [d for d in run.declarations if d.occurred is False]
    return int(bool(undeclared or stale))


def nothing_verified(run: Run) -> bool:
    """Whether claims were asked and not one of them holds or is declared: nothing is known of the subject."""
    told = (c.outcome in ("pass", "declared") or covering(run.declarations, c) for c in run.claims)
    return bool(run.claims) and not any(told)


def missing_claims(run: Run) -> list[Key]:
    """Claims that were planned and never concluded."""
    asked = {c.id for c in run.claims}
    return [key for key in run.planned if key.id not in asked]

"""What to fix next: at most five instructions, most severe first, each with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS, SEVERITIES, TAGS
from reports.judge.verdicts import is_unverified
from reports.model import Audit, Cite, Claim, Finding
from reports.order import rank
from reports.text import listed

MOST = 5
REMEDIES = {
    "shapes": "give the adapter the references' tensors",
    "init": "start from the references' initial values",
    "scale": "apply the references' scale factor",
    "step0": "make the first gradients those of the references",
    "forward": "compute what the references compute",
    "dropout": "drop what the references drop, when they do",
    "dtype": "keep the references' dtypes",
    "training": "make training follow the references' trajectory",
    "merge": "make the merged and the detached layer exact",
    "save_load": "make saving and loading keep the adapter, or refuse",
    "targets": "adapt the modules that the references adapt",
}


@dataclass(frozen=True)
class Fix:
    """One instruction: whom it concerns, what to do, why, and where."""

    who: str
    severity: str
    what: str
    why: str
    ids: str
    places: tuple[Cite, ...]


def next_fixes(audit: Audit, names: Mapping[str, str]) -> tuple[Fix, ...]:
    """The most severe findings as instructions; one defect in several variants is one of them."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in sorted(audit.findings, key=lambda f: _urgency(f, list(audit.verdicts))):
        if f.severity != "none":
            groups.setdefault((f.severity, f.tag, f.aspect, f.title), []).append(f)
    return tuple(_fix(audit, names, members) for members in list(groups.values())[:MOST])


def _urgency(finding: Finding, variants: Sequence[str]) -> tuple[int, ...]:
    return (
        rank(finding.severity, SEVERITIES),
        rank(finding.tag, TAGS),
        variants.index(finding.variant),
        rank(finding.aspect, ASPECTS),
    )


def _fix(audit: Audit, names: Mapping[str, str], members: Sequence[Finding]) -> Fix:
    first = members[0]
    who = list(dict.fromkeys(names[f.variant] for f in members))
    silent = is_unverified(first, audit.run.claims)
    places = {c: None for f in members for c in f.subject_cites if not silent}
    ids = [f"{f.id}" if len(who) == 1 else f"{names[f.variant]} {f.id}" for f in members]
    what = _instruction(first, audit.run.claims)
    return Fix(listed(who), first.severity, what, first.title.rstrip("."), listed(ids), tuple(places))


def _instruction(finding: Finding, claims: Sequence[Claim]) -> str:
    """What to do about a finding of this kind."""
    own = [c for c in claims if c.id in finding.claims]
    if is_unverified(finding, own):
        return "make this verifiable"
    if any(c.outcome == "error" for c in own) and all(c.outcome == "error" for c in own):
        return "keep the subject from failing"
    if all(c.outcome == "not_applicable" for c in own):
        return "add the missing mode, or state in the docstring that it is left out"
    remedy = next((c.diagnosis.remedy for c in own if c.diagnosis and c.diagnosis.remedy), "")
    if finding.tag == "BUG":
        return remedy or REMEDIES.get(finding.aspect, "follow the references")
    remedy = remedy or "follow the references"
    if finding.tag == "OK-undoc":
        return f"state the difference in the docstring, or {remedy}"
    return f"{remedy}, or keep the documented choice knowingly"

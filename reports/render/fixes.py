"""What to fix next: at most five instructions, most severe first, each with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS, SEVERITIES, TAGS
from reports.judge.verdicts import is_unverified
from reports.model import Audit, Cite, Claim, Finding
from reports.order import rank
from reports.text import listed, shortened

MOST = 5
# Aspects whose claims make calls of the interface with nothing that could be refused.
OF_CALLS = ("merge", "save_load", "lifecycle")
# Where no mistake is named: what to look at, by the kind of check that fails. The case and its numbers stand beside it.
LOOK_AT = {
    "shapes": "register this tensor as the references do",
    "init": "set this tensor's start as the references do",
    "scale": "follow the scale factor through the code",
    "step0": "follow this gradient through the first backward pass",
    "forward": "follow this quantity through the code",
    "dropout": "follow the mask through the code",
    "dtype": "look for what is done otherwise in this dtype, casts and branches on the dtype",
    "contexts": "make the layer answer alike in this context",
    "training": "follow this quantity through one step of the optimiser",
    "merge": "follow weight and bias through merging and detaching",
    "save_load": "make saving and loading keep the adapter, or refuse the file in a sentence",
    "lifecycle": "take the steps of the smallest case one by one, and mend the one that leaves the layer otherwise",
    "layers": "make the layer of this kind answer as the references do, or refuse it in a sentence",
    "targets": "adapt these modules and no others",
    "checkpoints": "read and write this checkpoint as the references do, or refuse it in a sentence",
}
# Checks whose quantity is not what their aspect is mostly about.
LOOK_AT_OF_CHECK = {
    "shapes.frozen_base": "freeze what is not the adapter's",
    "shapes.bad_rank": "refuse this rank in a sentence",
    "shapes.modes": "let this option change the function as in the references, or refuse it in a sentence",
    "init.base_weight": "leave the base layer as it is",
    "step0.base_frozen": "freeze the base layer's own parameters",
    "targets.counts": "freeze every parameter of the model that is no adapter's, and train all of theirs",
    "targets.sides": "gate this layer on the side on which PEFT gates it",
    "targets.model_forward": "follow this quantity through the adapted model: the layers that are adapted are PEFT's",
    "save_load.other_settings": "take alpha, rank and options from the file, or refuse settings that contradict it",
}


def look_at(check: str, aspect: str) -> str:
    """What to look at where no mistake is named: an instruction, without its full stop."""
    return LOOK_AT_OF_CHECK.get(check) or LOOK_AT.get(aspect, "follow this quantity through the code")


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
    what = instruction(first, audit.run.claims)
    return Fix(listed(who), first.severity, what, first.title.rstrip("."), listed(ids), tuple(places))


def instruction(finding: Finding, claims: Sequence[Claim]) -> str:
    """What to do about a finding: the remedy of its mistake, else what has to come out at its smallest case."""
    own = sorted((c for c in claims if c.id in finding.claims), key=lambda c: finding.claims.index(c.id))
    lead = own[0]
    if lead.cause == "wrapper":
        return f"mend the subject's own file ({lead.detail or 'see the reason'}) and ask again"
    if lead.cause == "not_offered":
        return "write save and load in the subject's file, so that this is asked"
    if is_unverified(finding, own):
        return "make this verifiable"
    if lead.outcome == "error":
        return _of_an_exception(lead)
    if lead.outcome == "not_applicable":
        return "add the missing mode, or state in the docstring that it is left out"
    remedy = _remedy(finding, own) or _to_come_out(lead)
    if finding.tag in ("OK-undoc", "STYLE"):
        return f"state the difference in the docstring, or {remedy}"
    return remedy if finding.tag == "BUG" else f"{remedy}, or keep the documented choice knowingly"


def _of_an_exception(lead: Claim) -> str:
    """Mend it, or refuse what was given; a call without an argument to refuse has to work, or not to be offered."""
    placed = lead.cause == "raised" and " at " in (lead.detail or "")
    mend = f"mend the exception {lead.detail}" if placed else "mend this"
    what = lead.diagnosis.remedy if lead.diagnosis else mend
    if lead.aspect in OF_CALLS:
        return f"{what}; or leave the call out of what is offered"
    return f"{what}, or refuse such input with a sentence"


def _remedy(finding: Finding, own: Sequence[Claim]) -> str:
    told = [d for c in own for d in (*((c.diagnosis,) if c.diagnosis else ()), *c.further)]
    return next((d.remedy for d in told if d.mistake == finding.mistake and d.remedy), "")


def _to_come_out(lead: Claim) -> str:
    """Where nothing names the mistake: which quantity to follow, and what it has to be at the smallest case."""
    look = look_at(lead.check, lead.aspect)
    if lead.witness is None:
        return look
    w = lead.witness
    expected, actual = shortened(w.expected, 160), shortened(w.actual, 160)
    return f"{look}: {w.quantity} has to be {expected} at the smallest case, and is {actual}"

"""A finding in sentences: what, how it fails, the smallest case, against whom, and whether the subject says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS
from reports.judge.grouping import covering
from reports.judge.verdicts import is_unverified
from reports.model import Claim, Finding, Run
from reports.order import rank
from reports.render.oracle_names import oracle_name
from reports.text import listed, number, shortened


@dataclass(frozen=True)
class Difference:
    """A finding in sentences; an empty one is left out."""

    finding: Finding
    tags: str
    aspect: str
    equals: str
    smallest: str
    replay: str
    against: str
    also: str
    note: str


def difference(run: Run, finding: Finding, claims: Sequence[Claim]) -> Difference:
    own = sorted((c for c in claims if c.id in finding.claims), key=lambda c: finding.claims.index(c.id))
    lead = own[0]
    silent = is_unverified(finding, claims)
    return Difference(
        finding=finding,
        tags=_tags(finding),
        aspect=ASPECTS.get(finding.aspect, finding.aspect),
        equals=_equals(finding, own),
        smallest=_smallest(own),
        replay=next((c.witness.replay for c in own if c.witness and c.witness.replay), ""),
        against="" if silent else _against(lead, claims),
        also=_also(lead, own),
        note=_note(run, finding, own),
    )


def _tags(finding: Finding) -> str:
    extra = [tag for tag, holds in (("NEW-BUG", finding.new), ("OVERTURN", finding.overturn)) if holds]
    return " ".join(f"[{tag}]" for tag in (finding.tag, *extra))


def _equals(finding: Finding, own: Sequence[Claim]) -> str:
    """What the mistakes catalogue says of it."""
    diagnosis = next((c.diagnosis for c in own if c.diagnosis), None)
    if diagnosis:
        form = f"; as in {diagnosis.agrees_with}" if diagnosis.agrees_with else ""
        cases = f"in {diagnosis.matched} of {diagnosis.tried} cases"
        return f"`{diagnosis.mistake}` of the mistakes catalogue, {cases}{form}"
    if finding.tag == "BUG" and any(c.outcome == "fail" for c in own):
        return "nothing in the mistakes catalogue"
    return ""


def _smallest(own: Sequence[Claim]) -> str:
    """The counterexample in one sentence: the case, what was expected, what came, by how much it is off."""
    claim = next((c for c in own if c.witness), None)
    if claim is None or claim.witness is None:
        return ""
    w = claim.witness
    case = ", ".join(f"{k} {_shown(v)}" for k, v in w.case.items())
    words = f"{case}: " if case else ""
    words += f"{w.quantity}: expected {_long(w.expected)}, got {_long(w.actual)}"
    if claim.ratio is not None:
        words += f"; ratio {number(claim.ratio)}, threshold {number(claim.threshold)}"
    return words + (f" ({_long(w.note)})" if w.note else "")


def _long(words: str) -> str:
    return shortened(words, 300)


def _shown(value: object) -> str:
    return shortened(f"{value:g}" if isinstance(value, float) else str(value), 120)


def _against(lead: Claim, claims: Sequence[Claim]) -> str:
    """Which references were asked the same question, and with which of them the subject agrees."""
    same = [c for c in claims if c.question == lead.question]
    by_outcome: dict[str, list[str]] = {}
    for c in same:
        by_outcome.setdefault(c.outcome, []).append(oracle_name(c.oracle))
    if lead.outcome == "not_applicable":
        return listed(by_outcome["not_applicable"])
    differs = by_outcome.get("fail", []) + by_outcome.get("error", []) + by_outcome.get("declared", [])
    words = listed(differs)
    words += f" (agrees with {listed(by_outcome['pass'])})" if "pass" in by_outcome else " (agrees with none)"
    return words + (f"; not told by {listed(by_outcome['unverified'])}" if "unverified" in by_outcome else "")


def _also(lead: Claim, own: Sequence[Claim]) -> str:
    """The other checks in which the same defect shows, by aspect."""
    by_aspect: dict[str, dict[str, None]] = {}
    for c in own:
        if c.check != lead.check:
            by_aspect.setdefault(c.aspect, {})[f"`{c.check}`"] = None
    order = sorted(by_aspect, key=lambda a: rank(a, ASPECTS))
    return "; ".join(f"{ASPECTS.get(a, a)} ({', '.join(by_aspect[a])})" for a in order)


def _note(run: Run, finding: Finding, own: Sequence[Claim]) -> str:
    """Whether the subject says so itself."""
    declared = next((d for c in own if (d := covering(run.declarations, c))), None)
    if declared:
        words = ", ".join(f'"{w}"' for w in declared.words)
        said = f"says so ({words})" if declared.documented else f"does not say {words}"
        return f"declared by the subject, and its docstring {said}; {_searched(run, finding.variant)}"
    if finding.tag == "OK-doc":
        return "the subject's docstring says so"
    return "the subject's docstring does not say so" if finding.tag == "OK-undoc" and _compared(own) else ""


def _searched(run: Run, variant: str) -> str:
    """Which docstrings are the subject's: its wrapper's, and those around the places that it names."""
    named = [c for (v, _), c in run.subject.quotes.items() if v == variant and c.symbol]
    places = dict.fromkeys(f"`{c.symbol}` in {c.alias}" for c in named)
    return "searched: " + listed(["the docstring of the subject's class", *places])


def _compared(own: Sequence[Claim]) -> bool:
    return any(c.outcome in ("fail", "declared") for c in own)

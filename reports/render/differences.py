"""A finding in sentences: what, how it fails, the smallest case, against whom, what to do, and who says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS
from reports import cites
from reports.judge.grouping import covering, is_missing_mode
from reports.judge.prior import names
from reports.judge.standing import is_asked_of_all
from reports.judge.verdicts import is_unverified
from reports.model import Cite, Claim, Diagnosis, Finding, Run
from reports.order import rank
from reports.render.fixes import instruction
from reports.render.oracle_names import oracle_name
from reports.text import listed, number, shortened

QUOTED_REFERENCES = 2


@dataclass(frozen=True)
class Difference:
    """A finding in sentences; an empty one is left out. ``quotes``: the lines that it rests on, both sides."""

    finding: Finding
    tags: str
    aspect: str
    equals: str
    smallest: str
    replay: str
    said: str
    against: str
    mend: str
    also: str
    note: str
    quotes: tuple[Cite, ...]


def difference(run: Run, finding: Finding, claims: Sequence[Claim]) -> Difference:
    own = sorted((c for c in claims if c.id in finding.claims), key=lambda c: finding.claims.index(c.id))
    lead = own[0]
    told = not is_unverified(finding, claims)
    return Difference(
        finding=finding,
        tags=_tags(finding),
        aspect=ASPECTS.get(finding.aspect, finding.aspect),
        equals=_equals(finding, own),
        smallest=_smallest(own),
        replay=next((c.witness.replay for c in own if c.witness and c.witness.replay), ""),
        said=listed(f'"{words}"' for words in finding.heard),
        against=_against(finding, lead, _having(run, finding, own)) if told else "",
        mend=instruction(finding, own) if finding.severity != "none" and finding.tag == "BUG" else "",
        also=_also(lead, own),
        note=_note(run, finding, own),
        quotes=_quotes(finding) if told else (),
    )


def _tags(finding: Finding) -> str:
    extra = [tag for tag, holds in (("NEW-BUG", finding.new), ("OVERTURN", finding.overturn)) if holds]
    return " ".join(f"[{tag}]" for tag in (finding.tag, *extra))


def _diagnosis(finding: Finding, own: Sequence[Claim]) -> Diagnosis | None:
    """What the finding's first claim that names its mistake says of it."""
    naming = next((c for c in own if finding.mistake and names(c, finding.mistake)), None)
    if naming is None or naming.diagnosis is None:
        return None
    return next(d for d in (naming.diagnosis, *naming.further) if d.mistake == finding.mistake)


def _equals(finding: Finding, own: Sequence[Claim]) -> str:
    """What the mistakes catalogue says of it."""
    known = _diagnosis(finding, own)
    if known and known.source == "catalogue":
        form = f"; as in {known.agrees_with}" if known.agrees_with else ""
        return f"`{known.mistake}` of the mistakes catalogue, in {known.matched} of {known.tried} cases{form}"
    if known:
        return f"as in {known.agrees_with}" if known.agrees_with else ""
    if finding.tag == "BUG" and any(c.outcome == "fail" for c in own):
        return "nothing in the mistakes catalogue"
    return ""


def _smallest(own: Sequence[Claim]) -> str:
    """The counterexample in one sentence: the case, what was expected, what came, by how much it is off."""
    claim = next((c for c in own if c.witness), None)
    if claim is None or claim.witness is None:
        return ""
    w = claim.witness
    words = f"{case}: " if (case := case_of(claim)) else ""
    words += f"{w.quantity}: expected {_long(w.expected)}, got {_long(w.actual)}"
    if claim.ratio is not None:
        words += f"; ratio {number(claim.ratio)}, threshold {number(claim.threshold)}"
    return words + (f" ({_long(w.note)})" if w.note else "")


def case_of(claim: Claim) -> str:
    """The smallest case in words: in 2, out 1, rank 1."""
    items = claim.witness.case.items() if claim.witness else ()
    return ", ".join(f"{k} {_shown(v)}" for k, v in items)


def _long(words: str) -> str:
    return shortened(words, 600)


def _shown(value: object) -> str:
    return shortened(f"{value:g}" if isinstance(value, float) else str(value), 120)


def _having(run: Run, finding: Finding, own: Sequence[Claim]) -> list[str]:
    """Of a missing mode, the references that have it: those that are asked for it, and all where it is the equation."""
    questions = {c.question for c in own if c.oracle != "paper"}
    asked = {c.oracle for c in run.claims if c.question in questions}
    known = [o for o in (*finding.differ, *finding.not_asked) if o in asked]
    return known or [*finding.differ, *finding.not_asked]


def _against(finding: Finding, lead: Claim, having: Sequence[str]) -> str:
    """Who differs from the subject, who agrees, who was not asked; on the failing case itself where they were."""
    if is_missing_mode(lead):
        return f"{_names(having)}, which {'have' if len(having) > 1 else 'has'} it"
    where = " on this very case" if is_asked_of_all(lead.witness) else ""
    words = [f"{_names(finding.differ) or 'none'}{where}"]
    agree = len(finding.agree)
    if agree or not finding.also_fails:
        words.append(
            f"{_names(finding.agree)} {'agrees' if agree == 1 else 'agree'}" if agree else "none agrees"
        )
    if finding.not_asked:
        words.append(f"not asked, or without an answer: {_names(finding.not_asked)}")
    if finding.also_fails:
        words.append(f"stricter than {listed(finding.also_fails)}, which does the same")
    return "; ".join(words)


def _names(oracles: Sequence[str]) -> str:
    return listed(map(oracle_name, oracles))


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
    if finding.stated:
        return f"the subject's docstring says so: {finding.stated}"
    gap = finding.tag == "OK-undoc" and any(
        c.outcome in ("fail", "declared") or is_missing_mode(c) for c in own
    )
    if not gap:
        return ""
    return f"the subject's docstring does not say so; {_searched(run, finding.variant)}"


def _searched(run: Run, variant: str) -> str:
    """Which docstrings are the subject's: its wrapper's, and those around the places that it names."""
    named = [c for (v, _), c in run.subject.quotes.items() if v == variant and c.symbol]
    places = dict.fromkeys(f"`{c.symbol}` in {c.alias}" for c in named)
    return "searched: " + listed(["the docstring of the subject's class", *places])


def _quotes(finding: Finding) -> tuple[Cite, ...]:
    """The subject's lines and the first of the references', which are read anew where only their place was kept."""
    known = {c.label: c for a in (finding.aspect, "step0") for c in cites.reference_cites(finding.variant, a)}
    theirs = [known.get(c.label, c) for c in finding.reference_cites if c.start is not None]
    quotes = (*finding.subject_cites, *theirs[:QUOTED_REFERENCES])
    return tuple(c for c in quotes if c.lines)

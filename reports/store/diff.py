"""What changed between two audits: variant by variant, claim by claim, and whether anything got worse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from refs.vocabulary import GRADES
from reports import cites
from reports.model import Audit, Claim
from reports.text import number, one_line

# The lower the better; a claim that is gone was verified and is not any more.
BADNESS = {"pass": 0, "declared": 1, "not_applicable": 2, "gone": 2, "unverified": 3, "error": 4, "fail": 4}
SIGN = {True: "-", False: "+", None: " "}


@dataclass(frozen=True)
class Change:
    """One line of a diff. ``worse`` None: neither better nor worse."""

    words: str
    worse: bool | None


def changes(old: Audit, new: Audit) -> list[tuple[str, list[Change]]]:
    """The changes of every variant that either audit asked about."""
    variants = dict.fromkeys([*cites.variants_of(new.run), *cites.variants_of(old.run)])
    return [(v, [*_verdict(old, new, v), *_claims(old, new, v), *_findings(old, new, v)]) for v in variants]


def render(old: Audit, new: Audit) -> tuple[str, bool]:
    """The diff in words, and whether something got worse."""
    lines, worse = [_title(old, new)], False
    for variant, found in changes(old, new):
        if found:
            lines += ["", variant, *(f"  {SIGN[c.worse]} {one_line(c.words)}" for c in found)]
        worse = worse or any(c.worse for c in found)
    if len(lines) == 1:
        lines.append("no change")
    return "\n".join(lines) + "\n", worse


def _title(old: Audit, new: Audit) -> str:
    names = [f"{a.run.subject.name} {a.run.subject.version}" for a in (old, new)]
    return one_line(names[0] if names[0] == names[1] else f"{names[0]} -> {names[1]}")


def _verdict(old: Audit, new: Audit, variant: str) -> Iterable[Change]:
    was, now = old.verdicts.get(variant), new.verdicts.get(variant)
    if was is None and now is not None:
        yield Change(f"new: {now.verdict}", None)
    elif was is not None and now is None:
        yield Change(f"no longer audited (was {was.verdict})", True)
    elif was and now and was.verdict != now.verdict:
        worse = GRADES.index(now.verdict) > GRADES.index(was.verdict)
        yield Change(f"{was.verdict} -> {now.verdict}: {now.reason}", worse)


def _claims(old: Audit, new: Audit, variant: str) -> Iterable[Change]:
    """Claims whose outcome changed, in the order of the new audit; those that are gone come last."""
    before = {c.id: c for c in old.run.claims if c.variant == variant}
    after = {c.id: c for c in new.run.claims if c.variant == variant}
    for id_ in dict.fromkeys([*after, *before]):
        was, now = before.get(id_), after.get(id_)
        if was and now and was.outcome != now.outcome:
            yield Change(f"{id_}: {_shown(was)} -> {_shown(now)}", _got_worse(was.outcome, now.outcome))
        elif now and not was:
            yield Change(f"{id_}: new, {_shown(now)}", BADNESS[now.outcome] > 2 or None)
        elif was and not now:
            yield Change(f"{id_}: gone (was {_shown(was)})", _got_worse(was.outcome, "gone"))


def _got_worse(was: str, now: str) -> bool | None:
    difference = BADNESS[now] - BADNESS[was]
    return None if difference == 0 else difference > 0


def _shown(claim: Claim) -> str:
    words = claim.outcome.replace("_", " ")
    return words if claim.ratio is None else f"{words} (ratio {number(claim.ratio)})"


def _findings(old: Audit, new: Audit, variant: str) -> Iterable[Change]:
    """Defects that came or went, by their titles."""
    before = {f.title: f for f in old.findings if f.variant == variant and f.severity != "none"}
    after = {f.title: f for f in new.findings if f.variant == variant and f.severity != "none"}
    for title, f in after.items():
        if title not in before:
            yield Change(f"finding {f.id} [{f.tag}] {title}", True)
    for title, f in before.items():
        if title not in after:
            yield Change(f"no more: {f.id} [{f.tag}] {title}", False)

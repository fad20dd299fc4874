"""The prior review, line by line: confirmed, fixed since, corrected, overturned, or not reproduced here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from refs.vocabulary import GRADES
from reports.judge.prior import FAITHFUL, asks, tells_of
from reports.judge.verdicts import is_unverified
from reports.model import Audit, Claim, Finding, PriorFinding, PriorVariant, Verdict
from reports.text import listed

Status = Literal["Confirmed", "Fixed since", "Corrected", "[OVERTURN]", "Not reproduced here"]


@dataclass(frozen=True)
class PriorLine:
    """A line of the prior review with what the evidence says of it."""

    quote: str
    status: Status
    evidence: str


def prior_lines(audit: Audit, variant: str) -> list[PriorLine]:
    """What the prior review said of a variant: its verdict first, then each of its findings."""
    old = audit.prior.variants.get(variant) if audit.prior else None
    if old is None:
        return []
    claims = [c for c in audit.run.claims if c.variant == variant]
    found = [f for f in audit.findings if f.variant == variant]
    lines = [_finding_line(old, line, claims, found) for line in old.findings]
    return [_verdict_line(old, audit.verdicts[variant], lines, found), *lines]


def _verdict_line(
    old: PriorVariant, now: Verdict, lines: Sequence[PriorLine], found: Sequence[Finding]
) -> PriorLine:
    quote = f"{old.variant} · {old.verdict}"
    overturning = [f.id for f in found if f.overturn]
    missed = [f.id for f in found if f.new]
    also = f" It missed {listed(missed)}." if missed else ""
    if old.verdict in FAITHFUL and overturning:
        say = "says" if len(overturning) == 1 else "say"
        return PriorLine(quote, "[OVERTURN]", f"{listed(overturning)} {say} otherwise: now {now.verdict}.")
    if old.verdict == now.verdict:
        return PriorLine(quote, "Confirmed", f"The verdict is {now.verdict} again.{also}")
    better = GRADES.index(now.verdict) < GRADES.index(old.verdict)
    if better and lines and all(line.status == "Fixed since" for line in lines):
        return PriorLine(quote, "Fixed since", f"What it rested on is gone: now {now.verdict}.")
    return PriorLine(quote, "Corrected", f"Now {now.verdict}: {now.reason}.{also}")


def _finding_line(
    variant: PriorVariant, old: PriorFinding, claims: Sequence[Claim], found: Sequence[Finding]
) -> PriorLine:
    quote = f"{variant.variant} · {variant.verdict} · {old.quote}"
    by_id = {c.id: c for c in claims}
    asked = [c for c in claims if c.id in old.claims or asks(old, c.check)]
    told = [
        f
        for f in found
        if tells_of(old, [by_id[i] for i in f.claims], f.mistake) and not is_unverified(f, claims)
    ]
    if told:
        return PriorLine(quote, *_still_there(old, told[0], asked))
    if _own_cases_hold(old, by_id):
        checks = listed(f"`{name}`" for name in dict.fromkeys(by_id[i].check for i in old.claims))
        return PriorLine(quote, "Fixed since", f"Its own cases were asked again and hold ({checks}).")
    return PriorLine(quote, "Not reproduced here", _what_was_asked(old, asked, found))


def _own_cases_hold(old: PriorFinding, by_id: Mapping[str, Claim]) -> bool:
    """Whether everything that failed then was asked again, on no fewer cases, and holds."""
    again = [(by_id.get(id_), cases) for id_, cases in old.claims.items()]
    return bool(again) and all(
        c is not None and c.outcome == "pass" and c.examples >= cases for c, cases in again
    )


def _what_was_asked(old: PriorFinding, asked: Sequence[Claim], found: Sequence[Finding]) -> str:
    """What this run asked about a line that it neither saw again nor refuted."""
    failing = [f.id for f in found if any(c.outcome == "fail" and c.id in f.claims for c in asked)]
    if failing:
        return (
            f"What it is about fails for another reason here ({listed(failing)}), so that it cannot be told."
        )
    answered = [c for c in asked if c.outcome == "pass"]
    silent = [c for c in asked if c.outcome in ("unverified", "error")]
    if silent or not answered:
        why = f"`{silent[0].id}` could not be answered" if silent else "no claim of this run asks it"
        return f"{_sentence(why)}."
    checks = listed(f"`{name}`" for name in dict.fromkeys(c.check for c in answered))
    own = (
        "not on all the cases that failed then"
        if old.claims
        else "on this run's cases, not on the prior review's"
    )
    return f"{_counted(answered)} ({checks}), {own}."


def _counted(claims: Sequence[Claim]) -> str:
    return "1 claim holds" if len(claims) == 1 else f"{len(claims)} claims hold"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] if words[:1].isascii() else words


def _still_there(old: PriorFinding, now: Finding, asked: Sequence[Claim]) -> tuple[Status, str]:
    """What to say of a prior finding whose checks do not hold now either."""
    evidence = next((c.id for c in asked if c.id in now.claims), now.claims[0])
    where = f"{now.id}, claim `{evidence}`"
    if old.tag == "BUG" and now.tag == "BUG":
        return "Confirmed", f"See {where}."
    if now.tag == "BUG":
        return "[OVERTURN]", f"It is a bug: see {where}."
    if old.tag == "BUG" and now.overturn:
        return "[OVERTURN]", f"It differs, but is no bug ({now.tag}): see {where}."
    if old.tag == "BUG":
        return (
            "Corrected",
            f"It is there, and declared or left out rather than wrong ({now.tag}): see {where}.",
        )
    return "Confirmed", f"See {where} ({now.tag})."

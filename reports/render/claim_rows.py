"""The table of claims, and what was not verified, by reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reports.model import Claim, Run
from reports.text import number, shortened

LACKING = ("not_offered", "no_variant", "mode_missing")  # the subject's own gaps, beside what does not arise


@dataclass(frozen=True)
class CheckRow:
    """One question and its answers, an answer per oracle."""

    check: str
    asks: str
    threshold: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Claims that were not verified for one reason."""

    outcome: str
    reason: str
    claims: tuple[str, ...]


def check_rows(run: Run, claims: Sequence[Claim], oracles: Sequence[str]) -> Iterable[CheckRow]:
    """One row per question, in the order of the claims."""
    rows: dict[tuple[str, str, str | None], list[Claim]] = {}
    for claim in claims:
        rows.setdefault(claim.question, []).append(claim)
    for members in rows.values():
        first = members[0]
        info = run.checks.get(first.check)
        limit = next((c.threshold for c in members if c.threshold is not None), None)
        cells = [next((_cell(c) for c in members if c.oracle == o), "") for o in oracles]
        yield CheckRow(_row_name(first), info.question if info else "", number(limit), tuple(cells))


def _row_name(claim: Claim) -> str:
    """The check, and the mode in which it was asked."""
    return f"{claim.check} ({claim.mode})" if claim.mode else claim.check


def _cell(claim: Claim) -> str:
    words = _kind(claim) if claim.outcome == "not_applicable" else claim.outcome
    return words if claim.ratio is None else f"{words} {number(claim.ratio)}"


def skipped(claims: Sequence[Claim]) -> tuple[int, int]:
    """(what the subject does not offer, what does not arise), in claims."""
    left_out = [c for c in claims if c.outcome == "not_applicable"]
    lacking = sum(c.cause in LACKING for c in left_out)
    return lacking, len(left_out) - lacking


def _kind(claim: Claim) -> str:
    """What a claim that tells nothing is called."""
    if claim.cause == "mode_missing":
        return "mode missing"
    return "not offered" if claim.cause in LACKING else claim.outcome.replace("_", " ")


def gaps(claims: Sequence[Claim], missing: Sequence[str]) -> Iterable[Gap]:
    """What was not verified, by reason; every missing claim by name."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for claim in claims:
        if claim.outcome in ("unverified", "not_applicable"):
            key = (_kind(claim), shortened(claim.reason or "no reason given", 500))
            by_reason.setdefault(key, []).append(claim.id)
    for claim_id in missing:
        by_reason.setdefault(("missing", "not asked, or the run ended before it was concluded"), []).append(
            claim_id
        )
    for (outcome, reason), ids in sorted(by_reason.items(), key=lambda item: item[0][0], reverse=True):
        yield Gap(outcome, reason, tuple(ids))

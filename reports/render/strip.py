"""The margins of a variant's claims as a strip: each ratio beside its threshold, on a logarithmic axis, by aspect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS
from reports.model import Claim
from reports.order import rank
from reports.text import number

DECADES = 4  # to either side of the threshold; beyond, a point stands at the edge
LEFT, WIDTH, HEIGHT = 150, 540, 22  # of the plot, and of a row, in units of the drawing


@dataclass(frozen=True)
class Point:
    """One claim; ``x``, ``y`` in units of the drawing."""

    x: float
    y: float
    outcome: str
    label: str


@dataclass(frozen=True)
class Row:
    """One aspect: its name and the middle of its line."""

    aspect: str
    y: float


@dataclass(frozen=True)
class Strip:
    """A drawing: rows, points, and where the threshold stands."""

    rows: tuple[Row, ...]
    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]
    threshold: float = LEFT + WIDTH / 2
    width: int = LEFT + WIDTH + 10

    @property
    def height(self) -> int:
        """Of the whole drawing: a row each, and one for the axis."""
        return HEIGHT * (len(self.rows) + 1)


def strip(claims: Sequence[Claim]) -> Strip | None:
    """The claims that have a ratio and a threshold; None where none has."""
    measured = [c for c in claims if c.ratio is not None and c.threshold is not None]
    aspects = sorted({c.aspect for c in measured}, key=lambda a: rank(a, ASPECTS))
    if not measured:
        return None
    rows = {aspect: Row(ASPECTS.get(aspect, aspect), HEIGHT * (n + 0.5)) for n, aspect in enumerate(aspects)}
    points = tuple(_point(c, rows[c.aspect].y) for c in measured)
    ticks = tuple((_x(float(d)), _times(d)) for d in range(-DECADES, DECADES + 1, 2))
    return Strip(tuple(rows.values()), points, ticks)


def _point(claim: Claim, y: float) -> Point:
    assert claim.ratio is not None
    assert claim.threshold is not None
    label = f"{claim.id}: ratio {number(claim.ratio)}, threshold {number(claim.threshold)}"
    return Point(_x(_decades(claim.ratio, claim.threshold)), y, claim.outcome, label)


def _decades(ratio: float, threshold: float) -> float:
    """log₁₀(ratio / threshold), within the plot; what is no number lies at the right edge."""
    if ratio == 0:
        return -DECADES
    if threshold == 0 or not math.isfinite(ratio):
        return DECADES
    return min(max(math.log10(ratio / threshold), -DECADES), DECADES)


def _x(decades: float) -> float:
    return round(LEFT + WIDTH * (decades + DECADES) / (2 * DECADES), 1)


def _times(decades: int) -> str:
    return (
        "threshold"
        if decades == 0
        else f"10{str(decades).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    )

"""Plots as inline SVG: lines over a linear or logarithmic axis, nothing more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 240, 52, 34, 26, 10
COLOURS = ("#1f5fa8", "#c2571a", "#3d8b4f", "#7a4fa3", "#8a8a2a", "#5a5a5a")
TINY = 1e-12


@dataclass(frozen=True)
class Line:
    """A named line; ``fill`` shades what is under it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    fill: bool = False


@dataclass(frozen=True)
class Scale:
    """Values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, v = (self._of(t) for t in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((v - low) / ((high - low) or 1.0))

    def _of(self, value: float) -> float:
        return math.log10(max(value, TINY)) if self.log else value

    def ticks(self) -> list[float]:
        """A few round values within the range."""
        if not self.log:
            return [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        first, last = math.ceil(self._of(self.low) - 1e-9), math.floor(self._of(self.high) + 1e-9)
        step = max(1, (last - first) // 5 + 1)
        return [10.0**e for e in range(first, last + 1, step)]


def chart(title: str, lines: Sequence[Line], across: str, *, log_x: bool = False, log_y: bool = True) -> str:
    """An SVG with axes, ticks, one polyline per line and a legend; "" if there is nothing to show."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    x = _scale([v for line in lines for v in line.x], LEFT, WIDTH - RIGHT, log_x)
    y = _scale(
        [v for line in lines for v in line.y if v > 0 or not log_y] or [1.0], HEIGHT - BOTTOM, TOP, log_y
    )
    inside = [_axes(x, y, across), *(_line(line, x, y, COLOURS[i % 6]) for i, line in enumerate(lines))]
    label = f'<text x="{LEFT}" y="15" class="title">{escape(title)}</text>'
    body = "".join(inside) + label + _legend(lines)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> Scale:
    low, high = min(values), max(values)
    if log:
        low, high = max(low, TINY), max(high, TINY)
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
    return Scale(low, high, start, end, log)


def _axes(x: Scale, y: Scale, across: str) -> str:
    parts = [
        f'<line x1="{LEFT}" y1="{y(t):.1f}" x2="{WIDTH - RIGHT}" y2="{y(t):.1f}" class="grid"/>'
        f'<text x="{LEFT - 5}" y="{y(t) + 3:.1f}" text-anchor="end">{_tick(t)}</text>'
        for t in y.ticks()
    ]
    parts += [
        f'<text x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{_tick(t)}</text>'
        for t in x.ticks()
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:g}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.0e}"


def _line(line: Line, x: Scale, y: Scale, colour: str) -> str:
    points = [(x(a), min(y(b), HEIGHT - BOTTOM)) for a, b in zip(line.x, line.y, strict=True)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}"/>'
    if not line.fill:
        return drawn
    floor = HEIGHT - BOTTOM
    area = f"{points[0][0]:.1f},{floor} {path} {points[-1][0]:.1f},{floor}"
    return f'<polygon points="{area}" fill="{colour}" opacity="0.18"/>{drawn}'


def _legend(lines: Sequence[Line]) -> str:
    return "".join(
        f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 11 + 12 * i}" text-anchor="end" fill="{COLOURS[i % 6]}">'
        f"{escape(line.name)}</text>"
        for i, line in enumerate(lines)
    )

"""The page of a library's releases: docs/peft_releases.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.survey.answers import Answer
from harness.survey.asking import anonymous
from harness.survey.edges import Edges
from harness.survey.strips import NOT_ASKED, Asked, Strip, numbers
from harness.survey.survey_pages import _markdown, _tidy
from oracles.variants import VARIANTS
from reports.store import text_files

LONGEST = 160  # characters of a reason


@dataclass(frozen=True)
class Row:
    """Claims that answer alike, as the page tells them."""

    checks: tuple[str, ...]
    states: str
    words: str
    why: str
    edges: tuple[
        str, ...
    ] = ()  # "0.5.0 / 0.6.0": the neighbours between which it changes, where that was searched


@dataclass(frozen=True)
class Method:
    """One method. ``changing`` and ``failing``: rows; ``holding``: how many claims hold wherever they are offered."""

    title: str
    since: str
    changing: tuple[Row, ...]
    failing: tuple[Row, ...]
    holding: int
    never: int

    @staticmethod
    def count(rows: Sequence[Row]) -> int:
        """How many claims some rows stand for."""
        return sum(len(row.checks) for row in rows)


def write(
    asked: Sequence[Asked], strips: Sequence[Strip], edges: Edges, silent: Sequence[Answer], path: Path
) -> None:
    """The page at ``path``. Raises OSError."""
    template = _markdown().get_template("peft_releases.md.j2")
    methods = [m for id_ in VARIANTS if (m := method(id_, asked, strips, edges)) is not None]
    left = unasked([a.release for a in asked])
    words = template.render(asked=asked, methods=methods, silent=silent, left=left)
    text_files.write_text(path, _tidy(words))


def unasked(releases: Sequence[str]) -> list[str]:
    """The minor releases between the first and the last of which none was asked, as 0.7."""
    minors = [numbers(release)[:2] for release in releases]
    first, last = min(minors), max(minors)
    between = range(first[1], last[1]) if first[0] == last[0] else ()
    return [f"{first[0]}.{n}" for n in between if (first[0], n) not in minors]


def method(id_: str, asked: Sequence[Asked], strips: Sequence[Strip], edges: Edges) -> Method | None:
    """A method's part of the page; None where no release offers it."""
    own = [s for s in strips if s.variant == id_]
    offered = [a.release for a in asked if id_ in a.audit.verdicts]
    if not offered:
        return None
    return Method(
        VARIANTS[id_].title,
        offered[0],
        tuple(_row(s, edges) for s in own if s.changes),
        tuple(_row(s, edges) for s in own if s.fails),
        sum(len(s.claims) for s in own if s.holds),
        sum(len(s.claims) for s in own if set(s.states) == {NOT_ASKED}),
    )


def _row(strip: Strip, edges: Edges) -> Row:
    why = anonymous(strip.why)
    if len(why) > LONGEST:
        why = why[:LONGEST].rsplit(" ", 1)[0] + " ..."
    found = tuple(" / ".join(edge) for edge in edges.get(strip.claims[0], ()))
    checks = tuple(c.partition("[")[0] + _mode(c) for c in strip.claims)
    return Row(checks, strip.states, strip.words, why, found)


def _mode(claim: str) -> str:
    """` (feedforward)` of `check[ia3-feedforward-paper]`; nothing where there is no mode."""
    parts = claim.partition("[")[2].rstrip("]").split("-")
    return f" ({parts[1]})" if len(parts) == 3 else ""

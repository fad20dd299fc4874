"""Between which two releases an answer changes: what lies between the asked ones is searched by halves, and kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import bisect
from harness.survey.strips import HOLDS, NOT_ASKED, Strip, numbers
from reports.store import text_files

Edge = tuple[str, str]
Edges = dict[str, list[Edge]]  # a strip's first claim -> where its answer changes, in order
FILE = "edges.json"


def boundaries(strip: Strip) -> Iterator[tuple[str, str, bool]]:
    """(the last release with one answer, the first with the other, whether the first of them holds)."""
    runs = [run for run in strip.runs if run.state != NOT_ASKED]
    for one, other in itertools.pairwise(runs):
        if one.state != other.state:
            yield one.last, other.first, one.state == HOLDS


def edges_of(
    strips: Sequence[Strip],
    listed: Sequence[str],
    judge: Callable[[str], bisect.Judge],
    kept: dict[str, Edge],
) -> Edges:
    """Every change's edge. ``judge``: a claim's; ``kept``: the edges that are known, added to. Raises CannotSearch."""
    found: Edges = {}
    for strip in (s for s in strips if s.changes):
        claim = strip.claims[0]
        for before, after, first_holds in boundaries(strip):
            key = f"{claim} {before} {after}"
            if key not in kept:
                good, bad = (before, after) if first_holds else (after, before)
                last, first = _search(bisect.between(listed, good, bad), judge(claim))
                kept[key] = (last, first) if first_holds else (first, last)
            found.setdefault(claim, []).append(kept[key])
    return found


def _search(chain: list[str], judge: bisect.Judge) -> Edge:
    """The ends have been asked already: only what lies between them is asked."""
    known = {chain[0]: "pass", chain[-1]: "fail"}
    return bisect.search(chain, lambda r: known.get(r) or judge(r), lambda line: None)


def load(folder: Path) -> dict[str, Edge]:
    """The edges that were found before; none where they cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(key): (str(one), str(other)) for key, (one, other) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save(kept: dict[str, Edge], folder: Path) -> None:
    """Keep what was found. Raises OSError."""
    text_files.write_text(folder / FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def known(strips: Sequence[Strip], kept: dict[str, Edge]) -> Edges:
    """The edges that need no asking: kept ones, and those of releases with none between them are told by the strip."""
    found: Edges = {}
    for strip in (s for s in strips if s.changes):
        claim = strip.claims[0]
        own = [kept[key] for b, a, _ in boundaries(strip) if (key := f"{claim} {b} {a}") in kept]
        if own:
            found[claim] = sorted(own, key=lambda edge: numbers(edge[0]))
    return found

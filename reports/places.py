"""Where a finding is shown on a code host: a file of the subject's own repository, from its root, and lines in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refs.quotes import cite_file
from refs.vocabulary import ASPECTS
from reports.model import Cite, Finding, Run


@dataclass(frozen=True)
class Place:
    """Lines of a file of the repository; not ``is_exact``: the subject's class, for want of a better place."""

    path: str
    start: int
    end: int
    is_exact: bool


def place_of(run: Run, finding: Finding) -> Place:
    """The first of the subject's lines that lie in its repository, else the line of the subject's class."""
    cites = [c for c in finding.subject_cites if c.start is not None]
    for cite in cites:
        if (path := _in_repository(run.root, Path(cite.alias))) is not None:
            return _place(path, cite, is_exact=True)
    own = _nearby(run, finding) or _class_of(run)
    if own is not None:
        return own
    # Nothing of the subject lies here (an audit that is rendered elsewhere): its own words for the place.
    return (
        _place(cites[0].alias, cites[0], True) if cites else Place(run.subject.ref or "subject", 1, 1, False)
    )


def _nearby(run: Run, finding: Finding) -> Place | None:
    """Lines of the same method that are about something else, for want of those that are meant."""
    quotes = {aspect: c for (variant, aspect), c in run.subject.quotes.items() if variant == finding.variant}
    for cite in (quotes[a] for a in ASPECTS if a in quotes and quotes[a].start is not None):
        if (path := _in_repository(run.root, Path(cite.alias))) is not None:
            return _place(path, cite, is_exact=False)
    return None


def _place(path: str, cite: Cite, is_exact: bool) -> Place:
    start = cite.start or 1
    return Place(path, start, cite.end or start, is_exact)


def _class_of(run: Run) -> Place | None:
    """The class in ``path/to/file.py:Class``; only its first line, since nothing in it is known to be wrong."""
    file, _, symbol = run.subject.ref.rpartition(":")
    path = _in_repository(run.root, Path(file).expanduser()) if file else None
    if path is None:
        return None
    found = cite_file(run.root / file, symbol)
    return Place(path, found.start or 1, found.start or 1, is_exact=False)


def _in_repository(root: Path, file: Path) -> str | None:
    """``file`` from the root of the git repository that ``root`` is in; from ``root`` where there is none."""
    try:
        base = root.resolve()
        path = (base / file).resolve()
        top = next((p for p in (base, *base.parents) if (p / ".git").exists()), base)
        if not path.is_file() or not path.is_relative_to(top) or "site-packages" in path.parts:
            return None
    except (OSError, ValueError):  # a subject's words may be no path at all
        return None
    return path.relative_to(top).as_posix()

"""`python -m harness.survey.peft_releases`: PEFT through its releases, and from when to when each claim held."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness import bisect
from harness.cases.profiles import PROFILES
from harness.engine.session import load_references
from harness.subjects import releases
from harness.survey import edges, strip_page
from harness.survey.answers import Answer, Shelf
from harness.survey.asking import Stopped, Ways, ask
from harness.survey.questions import ROOT, Question, audit_key
from harness.survey.strips import Asked, Strip, numbers, strips_of
from reports.errors import ReportsError

PAGE = ROOT / "docs" / "peft_releases.md"
FIRST = (0, 4)  # the first release with (IA)³
# Against the equations alone: what a release computes is judged by what the papers say, not by another release.
NARROWED = ("--oracle", "paper")


class BadOption(Exception):
    """An option cannot be used; the text is one sentence."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m harness.survey.peft_releases", description=__doc__)
    add = made.add_argument
    add("--releases", metavar="R,...", help="these (default: the last of each minor release from 0.4 on)")
    add("--audit-profile", default="quick", choices=list(PROFILES), help="examples per check (quick)")
    add("--limit", type=float, default=60, metavar="MINUTES", help="the longest for one release (60)")
    add("--offline", action="store_true", help="make no connection to set an environment up")
    add("--pages", action="store_true", help="ask nothing, write the page from what there is")
    add("--edges", action="store_true", help="ask releases between those that answer differently, too")
    add("--page", type=Path, default=PAGE, metavar="FILE", help="what is written (docs/peft_releases.md)")
    return made


def main(argv: Sequence[str] | None = None, shelf: Shelf | None = None) -> int:
    """Ask release after release and write the page. 0: each answered; 1: one did not; 4: an option cannot be used."""
    options, shelf, console = (
        parser().parse_args(argv),
        shelf or Shelf(),
        Console(highlight=False, markup=False),
    )
    try:
        chosen = _chosen(options, shelf)
    except (BadOption, bisect.CannotSearch) as error:
        print(f"releases: {error}", file=sys.stderr)
        return 4
    asked = [question(release, options.audit_profile) for release in chosen]
    try:
        silent = [] if options.pages else _ask(asked, shelf, options, console)
    except (KeyboardInterrupt, Stopped):
        console.print("interrupted: what was answered is kept; the same command goes on from there")
        return 130
    found = sorted(filter(None, (_answered(q, shelf) for q in asked)), key=lambda a: numbers(a.release))
    if not found:
        print("releases: no release has been asked yet, so there is nothing to write", file=sys.stderr)
        return 4
    strips, kept = strips_of(found), edges.load(shelf.folder / "peft")
    if options.edges:
        try:
            _search_edges(strips, kept, shelf, options)
        except bisect.CannotSearch as error:
            console.print(f"an edge cannot be found: {error}")
    strip_page.write(found, strips, edges.known(strips, kept), silent, options.page)
    console.print(f"written: {options.page}, {len(found)} releases")
    return int(bool(silent))


def _search_edges(
    strips: Sequence[Strip], kept: dict[str, edges.Edge], shelf: Shelf, options: argparse.Namespace
) -> None:
    """Ask for the edges that are not known, and keep them. Raises CannotSearch."""

    def judge(claim: str) -> bisect.Judge:
        load_references()
        return bisect.judged(claim, options.audit_profile, options.offline)

    try:
        edges.edges_of(strips, bisect.releases_of("peft"), judge, kept)
    finally:
        edges.save(kept, shelf.folder / "peft")


def question(release: str, profile: str) -> Question:
    """What a release is asked."""
    ref = f"peft@{release}"
    return Question(ref, profile, releases.FILE, releases.metadata_of(ref), NARROWED)


def _chosen(options: argparse.Namespace, shelf: Shelf) -> list[str]:
    """The releases in the order in which they are asked. Raises BadOption, or CannotSearch where none are listed."""
    if options.releases:
        given = [r.strip() for r in options.releases.split(",") if r.strip()]
        wrong = [r for r in given if releases.class_of(f"peft@{r}") != "Peft"]
        if wrong or not given:
            raise BadOption(f"--releases {options.releases!r}: expected releases such as 0.11.1,0.12.0")
        return given
    if options.pages or options.offline:
        there = (folder.name.partition("@")[2] for folder in shelf.folder.glob("peft@*"))
        return sorted(there, key=numbers)
    return last_of_each_minor(bisect.releases_of("peft"))


def last_of_each_minor(listed: Sequence[str]) -> list[str]:
    """0.8.2 of 0.8.0, 0.8.1 and 0.8.2; none before the first that is asked."""
    last: dict[tuple[int, ...], str] = {}
    for release in sorted(listed, key=numbers):
        if numbers(release)[:2] >= FIRST:
            last[numbers(release)[:2]] = release
    return list(last.values())


def _ask(
    asked: Sequence[Question], shelf: Shelf, options: argparse.Namespace, console: Console
) -> list[Answer]:
    """Ask those that have not answered; those that give no answer."""
    ways, silent = Ways(options.limit * 60, options.offline), []
    for one in asked:
        if _answered(one, shelf) is not None:
            console.print(f"{one.library}: answered before")
            continue
        answer = ask(one, audit_key(), shelf, ways, lambda library, percent: None)
        console.print(f"{one.library}: {answer.failure or f'{answer.seconds:.0f} s'}")
        silent += [answer] if answer.failure else []
    return silent


def _answered(one: Question, shelf: Shelf) -> Asked | None:
    """The newest answer to a question, by this state of the audit if there is one."""
    answer = shelf.best(one, audit_key())
    if answer is None or answer.failure:
        return None
    try:
        return Asked(one.library.partition("@")[2], answer, shelf.audit(answer))
    except ReportsError:
        return None


if __name__ == "__main__":
    sys.exit(main())

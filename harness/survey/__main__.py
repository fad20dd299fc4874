"""`python -m harness.survey`: every shipped subject audited, a library at a time, and the pages about them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from harness.cases.profiles import PROFILES
from harness.engine.checks import load_checks
from harness.subjects import resolve
from harness.survey import hand_checked, overview, survey_pages, unanswered
from harness.survey.answers import Answer, Shelf
from harness.survey.asking import Stopped, Ways, ask
from harness.survey.questions import ROOT, Question, audit_key, question
from oracles.variants import VARIANTS
from reports.errors import ReportsError
from reports.model import Audit
from reports.store import audit_json
from reports.text import listed

DOCS = ROOT / "docs"
NOT_YET = "it has not been asked yet"
OWN = "what the audit itself runs with"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m harness.survey", description=__doc__)
    add = made.add_argument
    add("--only", metavar="L,...", help="ask only these libraries; the pages tell of all")
    add("--audit-profile", default="default", choices=list(PROFILES), help="examples per check")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="libraries at a time (default: all cores)")
    add("--limit", type=float, default=120, metavar="MINUTES", help="the longest for one library (120)")
    add("--offline", action="store_true", help="make no connection to set an environment up")
    add(
        "--keep",
        action="store_true",
        help="be content with answers to another state of the audit; the pages say so",
    )
    add("--take", type=Path, nargs="+", default=[], metavar="AUDIT.json",
        help="audits of shipped subjects, made elsewhere, as their answers; nothing is asked")  # fmt: skip
    add("--pages", action="store_true", help="ask nothing, write the pages from what there is")
    add("--docs", type=Path, default=DOCS, metavar="DIR", help="where the pages go, and checked findings are")
    return made


class BadOption(Exception):
    """An option cannot be used; the text is one sentence."""


def main(argv: Sequence[str] | None = None, shelf: Shelf | None = None) -> int:
    """Ask, write, name what does not fit. 0: every bug is checked by hand; 1: something is not, or a library gave no
    answer; 4: an option cannot be used."""
    options = parser().parse_args(argv)
    shelf, console = shelf or Shelf(), Console(highlight=False, markup=False, soft_wrap=True)
    try:
        take(options.take, shelf)
        chosen = [] if options.pages or options.take else _chosen(options.only)
        checked = hand_checked.load(options.docs / "survey" / "checked")
    except (BadOption, ReportsError, hand_checked.BadChecked) as error:
        print(f"survey: {error}", file=sys.stderr)
        return 4
    todo = [
        q for name in chosen if not _kept(q := question(name, options.audit_profile), shelf, options.keep)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the libraries' processes end with this one
    try:
        asked_all(todo, shelf, options, console)
    except KeyboardInterrupt:
        console.print("interrupted: what was answered is kept; the same command goes on from there")
        return 130
    return tell(shelf, checked, options, console)


def _chosen(only: str | None) -> list[str]:
    """The libraries to ask. Raises BadOption."""
    there = resolve.shipped()
    asked = [name.strip() for name in only.split(",") if name.strip()] if only is not None else there
    unknown = [name for name in asked if name not in there]
    if unknown or not asked:
        raise BadOption(f"--only {only!r}: expected one or more of {', '.join(there)}")
    return asked


def take(files: Sequence[Path], shelf: Shelf) -> None:
    """Put audits on the shelf. Raises BadOption for one of no shipped subject, ReportsError for what is no audit."""
    for file in files:
        audit = audit_json.read(file)
        name, profile = audit.run.subject.ref, audit.run.profile["name"]
        if name not in resolve.shipped() or profile not in PROFILES:
            raise BadOption(
                f"--take {file}: it is about {name} under the profile {profile}, expected one of "
                f"{', '.join(resolve.shipped())} under {', '.join(PROFILES)}"
            )
        shelf.take(file, question(name, profile), audit)


def _kept(asked: Question, shelf: Shelf, keep: bool) -> bool:
    """Whether there is an answer already."""
    older = [a for a in shelf.any_of(asked) if not a.failure and a.profile == asked.profile] if keep else []
    return bool(older) or shelf.exact(asked, audit_key()) is not None


def asked_all(todo: Sequence[Question], shelf: Shelf, options: argparse.Namespace, console: Console) -> None:
    """Ask the libraries, so many at a time; a line for each as it ends."""
    ways = Ways(options.limit * 60, options.offline)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True) as bars,
        ThreadPoolExecutor(max(options.jobs, 1)) as pool,
    ):
        tasks = {q.library: bars.add_task(q.library, total=100, start=False) for q in todo}

        def show(library: str, percent: int) -> None:
            bars.start_task(tasks[library])
            bars.update(tasks[library], completed=percent)

        running = [pool.submit(ask, q, audit_key(), shelf, ways, show) for q in todo]
        try:
            for done in as_completed(running):
                answer = done.result()
                bars.remove_task(tasks[answer.library])
                console.print(f"{answer.library}: {answer.failure or overview.duration(answer.seconds)}")
        except (KeyboardInterrupt, Stopped):
            ways.stop.set()
            pool.shutdown(cancel_futures=True)
            raise KeyboardInterrupt from None


def tell(
    shelf: Shelf,
    checked: dict[str, list[hand_checked.Checked]],
    options: argparse.Namespace,
    console: Console,
) -> int:
    """Write the pages from the answers there are, and name what does not fit together."""
    audits: dict[str, Audit] = {}
    rows = [
        _row(name, shelf, checked.get(name, []), options.audit_profile, audits) for name in resolve.shipped()
    ]
    found = unanswered.asked(audits, {id_: c.info for id_, c in load_checks().items()})
    titles = survey_pages.titles({v.id: v.title for v in VARIANTS.values()}, rows)
    survey = survey_pages.Survey(tuple(rows), titles, tuple(found))
    for path in survey_pages.write(survey, options.docs)[:2]:
        console.print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    said = list(_complaints(audits, checked))
    for words in said:
        console.print(words)
    console.print(f"{survey.said}.")
    return int(bool(said or survey.silent))


def _row(
    name: str, shelf: Shelf, entries: Sequence[hand_checked.Checked], profile: str, audits: dict[str, Audit]
) -> overview.Row:
    """A library's row from its best answer; its audit goes into ``audits``."""
    asked = question(name, profile)
    requirements = ", ".join(asked.metadata.dependencies if asked.metadata else ()) or OWN
    unasked = Answer(name, profile, asked.subject_key, audit_key(), "", 0.0, asked.command, NOT_YET)
    answer = shelf.best(asked, audit_key()) or unasked
    outdated = answer.audit_key != audit_key()
    if answer.failure:
        return overview.Row(answer, requirements, outdated, name)
    try:
        audit = shelf.audit(answer)
    except ReportsError as error:
        unreadable = dataclasses.replace(answer, failure=f"its kept answer cannot be read: {error}")
        return overview.Row(unreadable, requirements, outdated, name)
    audits[name] = audit
    return overview.row(answer, audit, entries, requirements, outdated)


def _complaints(audits: dict[str, Audit], checked: dict[str, list[hand_checked.Checked]]) -> Iterator[str]:
    for name in sorted(set(checked) - set(resolve.shipped())):
        yield f"checked/{name}.toml is about no shipped subject ({listed(resolve.shipped())})"
    for name, audit in audits.items():
        yield from hand_checked.complaints(audit, name, checked.get(name, []))


if __name__ == "__main__":
    sys.exit(main())

"""What follows an audit in CI: annotations, the job's summary, badges, and the exit code that was asked for."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.model import Audit

FAIL_ON = ("any", "critical", "major", "never")
SEVERITIES = {"critical": ("critical",), "major": ("critical", "major")}


class Refused(Exception):
    """What was given cannot be used; the text is one sentence."""


def add_options(parser: ArgumentParser) -> None:
    """The options that this module acts on."""
    add = parser.add_argument
    add(
        "--fail-on", choices=FAIL_ON, default="any",
        help="what makes the exit code 1 (default any: an undeclared deviation or an unverified claim)",
    )  # fmt: skip
    add(
        "--baseline", type=Path, metavar="PATH", help="an earlier audit.json: 1 only where something is worse"
    )
    add(
        "--summary",
        type=Path,
        metavar="PATH",
        help='append the verdicts to it, such as "$GITHUB_STEP_SUMMARY"',
    )
    add("--annotations", action="store_true", help="print each finding for the lines of a pull request")
    add("--badges", type=Path, metavar="DIR", help="write DIR/VARIANT.json for shields.io's endpoint badge")


def is_asked(options: Namespace) -> bool:
    """Whether there is anything to do."""
    asked = (options.baseline, options.summary, options.annotations, options.badges)
    return any(asked) or options.fail_on != "any"


def baseline(options: Namespace) -> Audit | None:
    """The earlier audit, read before the new one is made. Raises Refused."""
    from reports.errors import ReportsError
    from reports.store import audit_json

    try:
        return audit_json.read(options.baseline) if options.baseline else None
    except ReportsError as error:
        raise Refused(f"--baseline {options.baseline}: {error}") from error


def finish(options: Namespace, result: Path, before: Audit | None, status: int) -> int:
    """Write what was asked for; the exit code. One other than 0 or 1 is kept: there, no audit is to be trusted."""
    from reports.errors import ReportsError, ShardOnly
    from reports.store import audit_json

    try:
        audit = audit_json.read(result)
    except ShardOnly as error:
        print(f"no summary, annotations or badges: {error}", file=sys.stderr)
        return 0 if status == 1 and options.fail_on == "never" else status
    except ReportsError as error:
        print(f"no summary, annotations or badges: {error}", file=sys.stderr)
        return status or 1
    write(options, audit)
    return _judged(options, audit, before, status) if status in (0, 1) else status


def write(options: Namespace, audit: Audit) -> None:
    """Annotations to stdout, the summary appended, one file per badge."""
    from reports.render import annotations, badges, summary
    from reports.store import text_files

    if options.annotations:
        print(annotations.render(audit), end="", flush=True)
    if options.summary:
        options.summary.parent.mkdir(parents=True, exist_ok=True)
        with options.summary.open("a", encoding="utf-8") as stream:
            stream.write(summary.render(audit))
    if options.badges:
        for variant, text in badges.render(audit).items():
            text_files.write_text(options.badges / f"{variant}.json", text)


def _judged(options: Namespace, audit: Audit, before: Audit | None, status: int) -> int:
    """``status``, or what the options make of it."""
    if before is not None:
        return _compared(before, audit)
    if options.fail_on == "any" or not status:
        return status
    wanted = SEVERITIES.get(options.fail_on, ())
    return int(any(f.severity in wanted and f.tag != "OK-doc" for f in audit.findings))


def _compared(before: Audit, audit: Audit) -> int:
    from reports.store import diff

    was, now = before.run.subject.name, audit.run.subject.name
    if was != now:
        print(
            f"--baseline is of {was}, this audit of {now}: two subjects cannot be compared", file=sys.stderr
        )
        return 4
    words, worse = diff.render(before, audit)
    print(f"against the baseline:\n{words}" + ("something got worse" if worse else "nothing got worse"))
    return int(worse)

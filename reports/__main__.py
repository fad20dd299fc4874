"""`python -m reports`: accept, diff, fails, render and merge what audits have left behind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import TextIO

from reports import reference_fails
from reports.errors import MergeRefused, ReportsError
from reports.judge.verdicts import audit_exit_code
from reports.model import Audit
from reports.render import html, markdown, sarif
from reports.render.console import Console
from reports.store import accept, audit_json, diff, merge, text_files
from reports.text import one_line

ROOT = Path(__file__).resolve().parents[1]
PRIOR = ROOT / "docs" / "audit" / "variants_review.toml"
REFUSED = 2


def main(arguments: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """0: done; 1: something got worse (diff), or does not hold (merge); 2: refused, or wrong usage."""
    given = parser().parse_args(arguments)
    out = out or sys.stdout
    try:
        return int(given.command(given, out))
    except ReportsError as error:
        print(f"refused: {one_line(str(error))}", file=sys.stderr)
    except BrokenPipeError:
        return 1
    except OSError as error:
        place = one_line(str(error.filename or "the output"))
        print(f"{place} cannot be written: {error.strerror or error}", file=sys.stderr)
    return REFUSED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m reports", description="Accept, diff, render and merge audits."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    take = _command(commands, "accept", _accept, "make an audit the next round's prior review")
    take.add_argument("audit", type=Path)
    take.add_argument(
        "-o", "--output", type=Path, default=PRIOR, help="default: docs/audit/variants_review.toml"
    )
    compare = _command(
        commands, "diff", _diff, "what changed from OLD to NEW; exit 1 when something got worse"
    )
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    table = _command(commands, "fails", _fails, "what a reference fails when it is the subject, as a table")
    table.add_argument("audit", type=Path)
    table.add_argument("-o", "--output", type=Path, default=reference_fails.TABLE)
    show = _command(commands, "render", _render, "the review of an audit")
    show.add_argument("audit", type=Path)
    show.add_argument("--format", choices=FORMATS, default="md")
    show.add_argument("--allow-partial", action="store_true", help="show an incomplete audit, marked as such")
    show.add_argument("-o", "--output", type=Path, help="default: standard output")
    join = _command(commands, "merge", _merge, "put the shards of one run together")
    join.add_argument("shards", type=Path, nargs="+", metavar="SHARD")
    join.add_argument("-o", "--output", type=Path, required=True)
    join.add_argument("--report", type=Path, help="write the review, too")
    return top


Command = Callable[[argparse.Namespace, TextIO], int]


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command, words: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=words, description=words[:1].upper() + words[1:] + ".")
    made.set_defaults(command=command)
    return made


def _accept(given: argparse.Namespace, out: TextIO) -> int:
    text_files.write_text(given.output, accept.accepted(audit_json.read(given.audit)))
    return 0


def _diff(given: argparse.Namespace, out: TextIO) -> int:
    words, worse = diff.render(audit_json.read(given.old), audit_json.read(given.new))
    text_files.write_stream(out, words)
    return int(worse)


def _fails(given: argparse.Namespace, out: TextIO) -> int:
    text_files.write_text(given.output, reference_fails.table_of(audit_json.read(given.audit)))
    return 0


def _render(given: argparse.Namespace, out: TextIO) -> int:
    read = audit_json.read_partial if given.allow_partial else audit_json.read
    words = FORMATS[given.format](read(given.audit))
    if given.output:
        text_files.write_text(given.output, words)
    else:
        text_files.write_stream(out, words)
    return 0


def _merge(given: argparse.Namespace, out: TextIO) -> int:
    if twice := [p for p in given.shards if given.shards.count(p) > 1]:
        raise MergeRefused(f"{twice[0]} is given twice: shards must not overlap")
    audit = merge.merged({str(path): audit_json.read_shard(path) for path in given.shards})
    audit_json.write(audit, given.output)
    if given.report:
        text_files.write_text(given.report, markdown.render(audit))
    return audit_exit_code(audit)


def _console(audit: Audit) -> str:
    stream = StringIO()
    Console(stream).summary(audit)
    return stream.getvalue()


FORMATS: dict[str, Callable[[Audit], str]] = {
    "md": markdown.render,
    "html": html.render,
    "sarif": sarif.render,
    "console": _console,
}

if __name__ == "__main__":
    sys.exit(main())

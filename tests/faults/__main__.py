"""`python -m tests.faults`: real faults of public libraries, before and after their mending. Does the audit tell?"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults import audits, judged, table

GOAL = 0.9


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where at least 90 % of the faults are found and no release that is mended is accused; 4: a bad command line."""
    given = parser().parse_args(arguments)
    try:
        faults, outside = table.load(given.table)
        chosen = select(faults, given.only)
    except (table.BadTable, OSError, ValueError) as error:
        print(f"faults: {error}", file=sys.stderr)
        return 4
    found = asked(chosen, given)
    text = judged.report(found, outside if not given.only else [])
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    _, bugs, whole = judged.recall(found)
    return int(bugs < GOAL * whole or any(j.alarms for j in found))


def asked(faults: Sequence[table.Fault], given: argparse.Namespace) -> list[judged.Judged]:
    """What becomes of each report: asked with the quick profile's cases and, where that does not name it, with more."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found: dict[str, judged.Judged] = {}
    for profile in given.profile:
        left = [f for f in faults if f.id not in found or found[f.id].fate != "named"]
        if left:
            runs = table.runs(left, profile)
            told = audits.results(runs, keep_old=given.keep, seconds=given.seconds, say=say)
            found |= {f.id: judged.judged(f, told) for f in left}
    return [found[f.id] for f in faults]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    top.add_argument(
        "only", nargs="*", metavar="PATTERN", help="only reports whose id this regular expression finds"
    )
    top.add_argument("--table", type=Path, default=table.TABLE)
    top.add_argument(
        "--profile", nargs="+", default=["quick", "default"], help="of one stage after the other"
    )
    top.add_argument(
        "--keep", action="store_true", help="use results of earlier states of the audit's code, too"
    )
    top.add_argument("--seconds", type=float, default=900.0, help="limit of one audit")
    top.add_argument("--output", type=Path, metavar="PATH", help="write the tables there, too")
    return top


def select(faults: Sequence[table.Fault], only: Sequence[str]) -> list[table.Fault]:
    """The reports that the patterns find, all where there are none. Raises BadTable where nothing is left."""
    chosen = [f for f in faults if not only or any(re.search(pattern, f.id) for pattern in only)]
    if not chosen:
        raise table.BadTable(f"no report's id has {' or '.join(only)} in it")
    return chosen


if __name__ == "__main__":
    sys.exit(main())

"""`adapter-conformance ci AUDIT_JSON`: what CI shows of an audit that is there already, such as shards put together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adapter_conformance import after, house

HELP = """Show an audit.json in CI: appends to --summary, prints --annotations, writes --badges, --sarif. Exit 0, or 1
where --fail-on or --baseline says so; 4 where a file cannot be used."""
USAGE = 4


def main(arguments: Sequence[str]) -> int:
    """Read, show, judge."""
    house.enter()
    from reports.errors import ReportsError
    from reports.judge.verdicts import audit_exit_code
    from reports.render import sarif
    from reports.store import audit_json, text_files

    options = _parser().parse_args(list(arguments))
    try:
        before, audit = after.baseline(options), audit_json.read(options.audit)
    except (after.Refused, ReportsError) as error:
        print(f"adapter-conformance ci: {error}", file=sys.stderr)
        return USAGE
    if options.sarif:
        text_files.write_text(options.sarif, sarif.render(audit))
    return after.finish(options, options.audit, before, audit_exit_code(audit))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adapter-conformance ci", description=HELP)
    parser.add_argument("audit", type=Path, metavar="AUDIT_JSON")
    parser.add_argument("--sarif", type=Path, metavar="PATH", help="write SARIF 2.1.0")
    after.add_options(parser)
    return parser

"""`python -m refs list | verify | sync | quote | pin`. Exit 0: ok; 1: drift, mismatch; 2: usage."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from refs import catalog as catalogue
from refs.errors import CatalogError, NotAvailableError, RefsError, UsageError
from refs.quotes import Citation, cite_lines, cite_target
from refs.sync import BASE_URL, RETRIES, Outcome, sync
from refs.verify import Status, check, write_digests

__all__ = ["main"]

STYLES = {"ok": "green", "absent": "yellow", "drift": "red", "refused": "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options, catalogue.load(options.catalog)))
    except (CatalogError, UsageError) as error:
        print(f"refs: {error}", file=sys.stderr)
        return 2
    except (RefsError, OSError) as error:
        print(f"refs: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refs", description="The references of the audit.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--cache", type=Path, help="the cache folder (default: $AUDIT_REFS_CACHE, else the user's)"
    )
    shared.add_argument("--catalog", type=Path, help="another catalogue than refs/catalog.toml")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[shared], help=text, description=text)
        made.set_defaults(run=run)
        return made

    command("list", _list, "every reference: where it comes from, its licence, whether it is here")
    command("verify", _verify, "compare every file with its sha256; say which aspects a change concerns")
    fetch = command("sync", _sync, "bring the authors' files into the cache")
    where = fetch.add_mutually_exclusive_group()
    where.add_argument("--from", dest="clones", type=Path, metavar="DIR", help="a folder of local clones")
    where.add_argument("--base-url", default=BASE_URL, help="a mirror that serves owner/name/commit/path")
    fetch.add_argument("--retries", type=int, default=RETRIES, help="how often to try again (default: 2)")
    shown = command("quote", _quote, "the lines of a symbol")
    shown.add_argument(
        "target",
        metavar="ALIAS:SYMBOL",
        help="or 'ALIAS:SYMBOL @ ANCHOR', or ALIAS:L150 as the review prints it",
    )
    command("pin", _pin, "write digests.json from the pinned files")
    return parser


def _list(options: argparse.Namespace, catalog: catalogue.Catalog) -> int:
    table = Table("alias", "from", "pin", "licence", "state", box=None, pad_edge=False)
    for alias in catalog.files:
        status = check(catalog, alias, options.cache)
        source, style = status.reference.source, STYLES[status.state]
        state = f"[{style}]{status.state}[/]"
        table.add_row(alias, source.name, source.pin[:12], escape(source.licence), state)
    _console().print(table)
    return 0


def _verify(options: argparse.Namespace, catalog: catalogue.Catalog) -> int:
    statuses = [check(catalog, alias, options.cache) for alias in catalog.files]
    console = _console()
    for status in statuses:
        console.print(
            f"[{STYLES[status.state]}]{status.state:8}[/] {status.reference.alias}", highlight=False
        )
        for line in _details(status):
            console.print(f"         {escape(line)}", highlight=False)
    counts = {state: sum(s.state == state for s in statuses) for state in STYLES}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n), highlight=False)
    return 0 if all(status.fine for status in statuses) else 1


def _details(status: Status) -> list[str]:
    if status.state == "ok":
        return []
    lines = [status.sentence]
    for drift in status.drifts:
        concerned = [f"quotes of {', '.join(drift.aspects)}"] if drift.aspects else []
        concerned += [f"oracles {', '.join(drift.oracles)}"] if drift.oracles else []
        lines.append(f"`{drift.symbol}` {drift.what}: concerns {' and '.join(concerned) or 'nothing cited'}")
    return lines


def _sync(options: argparse.Namespace, catalog: catalogue.Catalog) -> int:
    if not options.base_url.startswith(("https://", "http://")):
        raise UsageError(f"--base-url {options.base_url} is not an http address")
    if options.clones and not options.clones.is_dir():
        raise UsageError(f"--from {options.clones} is not a folder")
    wanted = sum(r.source.kind == "repository" for r in catalog.files.values())
    outcomes: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("syncing", total=wanted)
        for outcome in sync(catalog, options.cache, options.clones, options.base_url, options.retries):
            progress.update(task, advance=1, description=outcome.reference.alias)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        print(f"refs: {outcome.sentence}", file=sys.stderr)
    fetched, kept = (sum(o.state == state for o in outcomes) for state in ("fetched", "kept"))
    print(f"{fetched} fetched, {kept} already there, {len(failed)} failed")
    return 1 if failed else 0


def _quote(options: argparse.Namespace, catalog: catalogue.Catalog) -> int:
    found = _cited(catalog, options.target, options.cache)
    if found.missing or found.start is None:
        raise NotAvailableError(found.missing or "")
    print(f"{found.label}  {found.url}")
    for number, line in enumerate(found.lines, start=found.start):
        print(f"{number:6}  {line}")
    if found.note:
        print(f"refs: {found.note}", file=sys.stderr)
    return 1 if found.note else 0


def _cited(catalog: catalogue.Catalog, target: str, cache: Path | None) -> Citation:
    """What a target names: lines as the review prints them (``ALIAS:L150``, ``ALIAS:L150-L157``), else a symbol."""
    if lines := re.fullmatch(r"(?P<alias>[^:\s]+):L(?P<start>\d{1,7})(-L?(?P<end>\d{1,7}))?", target.strip()):
        start = int(lines["start"])
        return cite_lines(catalog, lines["alias"], start, int(lines["end"] or start), cache)
    return cite_target(catalog, *catalogue.parse_target(target), cache)


def _pin(options: argparse.Namespace, catalog: catalogue.Catalog) -> int:
    target = Path(options.catalog or catalogue.HERE / "catalog.toml").with_name("digests.json")
    print(f"{write_digests(catalog, target, options.cache)} symbols in {target.name}")
    return 0


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


if __name__ == "__main__":
    sys.exit(main())

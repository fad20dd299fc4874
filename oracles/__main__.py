"""`python -m oracles findings | record | vectors`: where the references disagree; recordings; checkpoint vectors.

With ``findings --into`` the part of the file between the two marker lines is replaced; the rest is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from oracles.authors import recorder
from oracles.disagreements import Disagreement, disagreements
from oracles.variants import VARIANTS
from oracles.vectors import writer
from refs import catalog as catalogue
from refs.errors import RefsError
from refs.quotes import Citation, cite_target

BEGIN, END = "<!-- the catalogue begins -->", "<!-- the catalogue ends -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 1 where a file is not the pinned one, 2 where there is nothing to write between."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except RefsError as error:
        print(f"oracles: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m oracles", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    findings = commands.add_parser("findings", help="where the references disagree, as markdown")
    findings.add_argument("--into", type=Path, metavar="PATH", help="a file that holds the marker lines")
    findings.set_defaults(run=_findings)
    record = commands.add_parser("record", help="run the authors' code and write refs/recordings")
    record.add_argument("--to", type=Path, metavar="DIR", help="another folder than refs/recordings")
    record.add_argument("--cache", type=Path, metavar="DIR", help="where the authors' files are")
    record.set_defaults(run=_record)
    vectors = commands.add_parser("vectors", help="write the checkpoint vectors, refs/vectors")
    vectors.add_argument("--into", type=Path, metavar="DIR", default=writer.HOME)
    vectors.set_defaults(run=_vectors)
    return parser


def _vectors(options: argparse.Namespace) -> int:
    print(f"{len(writer.write_corpus(options.into))} vectors in {options.into}")
    return 0


def _findings(options: argparse.Namespace) -> int:
    text = "\n".join(catalogue_lines())
    if options.into is None:
        print(text)
        return 0
    return _write(options.into, text)


def _record(options: argparse.Namespace) -> int:
    for line in recorder.write(options.to, catalogue.load(), options.cache):
        print(line)
    return 0


def _write(path: Path, text: str) -> int:
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        print(f"oracles: {path} lacks the lines {BEGIN} and {END}", file=sys.stderr)
        return 2
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


def catalogue_lines() -> Iterator[str]:
    """Every entry, variant by variant."""
    for variant in VARIANTS.values():
        yield f"\n### {variant.title}\n"
        for entry in disagreements(variant.id):
            yield from _entry(entry)


def _entry(entry: Disagreement) -> Iterator[str]:
    yield f"**{entry.what}** (`{entry.id}`; between {', '.join(entry.between)})\n"
    yield f"- *Where:* {', '.join(_places(entry))}"
    yield f"- *How much:* {entry.how_much}"
    yield f"- *Smallest case:* {entry.smallest}"
    yield f"- *What it means:* {entry.meaning}"
    checks = {oracle: ", ".join(f"`{c}`" for c in names) for oracle, names in entry.differs.items()}
    if checks:
        judged = "; ".join(f"against `{oracle}`: {names}" for oracle, names in checks.items())
        yield f"- *Judged against {entry.of_record} alone:* {judged}"
    yield ""


def _places(entry: Disagreement) -> Iterator[str]:
    catalog = catalogue.load()
    for target in entry.where:
        yield _place(cite_target(catalog, *catalogue.parse_target(target)))


def _place(cite: Citation) -> str:
    if cite.missing is not None:
        return f"`{cite.alias}:{cite.symbol}` (not synced)"
    return f"[`{cite.label}`]({cite.url})" if cite.url else f"`{cite.label}`"


if __name__ == "__main__":
    sys.exit(main())

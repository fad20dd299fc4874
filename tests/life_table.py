"""Tables of broken lives and kinds: what is wrong, the claim that finds it, the sentence, the smallest counterexample.

python -m tests.life_table --into docs/lives.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.cases import kind_cases
from harness.cases.profiles import Profile
from harness.compare import kind_faults, life_faults
from harness.engine.checks import load_checks
from harness.engine.session import claims_for
from reports.model import Claim, Diagnosis
from tests.subjects.broken_lives import BROKEN_LIVES, BrokenLife
from tests.subjects.kinds import BROKEN_KINDS, BrokenKind, fake_quantiser

TWELVE = Profile("default", 12, 0)
BEGINS, ENDS = "<!-- the tables begin -->", "<!-- the tables end -->"


def asked(broken: BrokenLife | BrokenKind) -> Claim:
    """The claim that should find it out, asked."""
    claims = claims_for(
        broken.make(),
        variants=[broken.variant],
        oracles=("paper",),
        checks=lambda check: check.id == broken.claim,
        profile=TWELVE,
    )
    return claims[0]


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in markdown."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def found(broken: BrokenLife | BrokenKind, of_case: Callable[[Claim], str]) -> tuple[str, ...]:
    """One row of a table of broken libraries."""
    claim = asked(broken)
    said = claim.diagnosis
    quantity = claim.witness.quantity if claim.witness else claim.reason
    says = f"{said.summary} (`{said.mistake}`)" if said else f"no entry: {quantity}"
    return broken.what.split("\n")[0], broken.variant, f"`{claim.check}`", says, of_case(claim)


def steps(claim: Claim) -> str:
    """The shrunken sequence."""
    told = claim.witness.case.get("steps") if claim.witness else None
    return f"`{told}`" if told else ""


def layer(claim: Claim) -> str:
    """The smallest layer: what is not the plain one's."""
    told = claim.witness.case if claim.witness else {}
    plain = {"dtype": "float32", "bias": False, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    plain["padding_mode"] = "zeros"
    left_out = ("alpha", "batch", "seed")
    plain |= {"padding_idx": None, "embed_scale": 1.0, "tied": False}
    return ", ".join(f"{k} {v}" for k, v in told.items() if k not in left_out and plain.get(k, "") != v)


def entry(diagnosis: Diagnosis) -> tuple[str, ...]:
    """One row of the catalogue."""
    return f"`{diagnosis.mistake}`", diagnosis.summary, diagnosis.failure_mode


def document() -> str:
    """The three tables."""
    load_checks()  # some entries stand beside their check
    kind_cases.QUANTISERS = {"own": fake_quantiser}
    columns = ("what is wrong", "variant", "claim", "what the finding says")
    entries = [*life_faults.CATALOGUE, *kind_faults.CATALOGUE]
    return "\n\n".join(
        (
            f"## The catalogue: {len(entries)} faults\n\nWhat the review says of each, and what it means.",
            table(("entry", "what the finding says", "what it means"), (entry(d) for d in entries)),
            f"## {len(BROKEN_LIVES)} broken lives",
            table((*columns, "shrunken sequence"), (found(b, steps) for b in BROKEN_LIVES)),
            f"## {len(BROKEN_KINDS)} broken kinds of layers",
            table((*columns, "smallest layer"), (found(b, layer) for b in BROKEN_KINDS)),
        )
    )


def main() -> None:
    """Print the tables, or write them into a document, between its two marks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--into", type=Path)
    into = parser.parse_args().into
    if into is None:
        sys.stdout.write(document() + "\n")
        return
    head, _, rest = into.read_text(encoding="utf-8").partition(BEGINS)
    _, mark, tail = rest.partition(ENDS)
    if not mark:
        parser.error(f"{into} lacks the marks {BEGINS} and {ENDS}")
    into.write_text(f"{head}{BEGINS}\n\n{document()}\n\n{ENDS}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()

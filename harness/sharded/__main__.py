"""`python -m harness.sharded`: adapters under FSDP2 and tensor parallelism, beside one process."""

from __future__ import annotations

import argparse
import sys

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from rich.table import Table

from harness.sharded.beside_one import EQUAL, QUESTIONS, Row, compared
from harness.sharded.jobs import AFTER, BEFORE, FSDP2, Job
from harness.subjects.resolve import BadSubject, resolve
from oracles.implementation import AdapterSpec, Implementation
from oracles.variants import VARIANTS

WAYS = (FSDP2, BEFORE, AFTER)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m harness.sharded", description=__doc__)
    add = made.add_argument
    add("--subject", default="lora_lite,peft", metavar="REF,...", help="as pytest's --subject")
    add("--variants", default="lora,dora,hra", metavar="V,...", help=f"of {', '.join(VARIANTS)}")
    add("--ranks", type=int, default=2, help="processes (default 2)")
    return made


def main(argv: list[str] | None = None) -> int:
    """0: every job that is offered is as in one process; 1: one is not; 2: it cannot be asked here."""
    options = parser().parse_args(argv)
    unknown = [v for v in options.variants.split(",") if v not in VARIANTS]
    if unknown:
        print(f"sharded: --variants {unknown[0]!r}: expected some of {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    if not dist.is_available() or not dist.is_gloo_available():
        print("sharded: this torch has no gloo, which the ranks would speak over", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    try:
        subjects = [resolve(ref).implementation for ref in options.subject.split(",")]
    except BadSubject as error:
        print(f"sharded: {error}", file=sys.stderr)
        return 2
    jobs = jobs_of(subjects, options.variants.split(","))
    console = Console()
    rows = [compared(j, options.ranks) for j in track(jobs, "asking", console=console, transient=True)]
    console.print(table(rows))
    return 0 if all(row.holds for row in rows) else 1


def jobs_of(subjects: list[Implementation], variants: list[str]) -> list[Job]:
    """Every way of spreading every variant that a subject has."""
    return [
        Job(subject, AdapterSpec(variant, rank=2, alpha=3.0), way)
        for subject in subjects
        for variant in variants
        if variant in subject.variants
        for way in WAYS
    ]


def table(rows: list[Row]) -> Table:
    """A line per job; what is the matter stands below, by its number."""
    made = Table(title="sharded, beside one process in float64", title_justify="left")
    for head in ("subject", "method", "spread by", *QUESTIONS.values()):
        made.add_column(head)
    matters = list(dict.fromkeys(m for row in rows for m in row.matters))
    for row in rows:
        numbered = [f"({matters.index(m) + 1})" if m != EQUAL else m for m in row.cells]
        made.add_row(row.job.subject.name, row.job.spec.variant, row.job.way, *numbered)
    made.caption = "\n".join(f"({n}) {m}" for n, m in enumerate(matters, start=1)).replace("[", "\\[")
    made.caption_justify = "left"
    return made


if __name__ == "__main__":
    sys.exit(main())

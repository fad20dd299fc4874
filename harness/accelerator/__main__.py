"""`python -m harness.accelerator`: the checks on numbers on an accelerator; without one it says so and ends with 2."""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from harness.accelerator.numbers_there import PRECISIONS, Measured, Precision, measure
from harness.subjects.resolve import BadSubject, resolve
from oracles.implementation import Implementation
from oracles.variants import VARIANTS

Row = tuple[Implementation, str, list[Measured]]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m harness.accelerator", description=__doc__)
    add = made.add_argument
    add("--subject", default="lora_lite,peft", metavar="REF,...", help="as pytest's --subject")
    add("--variants", metavar="V,...", help=f"of {', '.join(VARIANTS)} (default: all)")
    add("--device", metavar="D", help="as torch names it (default: the accelerator that torch finds)")
    return made


def main(argv: list[str] | None = None) -> int:
    """0: rounding explains every ratio; 1: one it does not; 2: it cannot be asked here."""
    options = parser().parse_args(argv)
    device = options.device or found_device()
    if device is None:
        print("accelerator: torch finds none on this machine, so nothing was asked", file=sys.stderr)
        return 2
    asked = options.variants.split(",") if options.variants else list(VARIANTS)
    if unknown := [v for v in asked if v not in VARIANTS]:
        print(
            f"accelerator: --variants {unknown[0]!r}: expected some of {', '.join(VARIANTS)}", file=sys.stderr
        )
        return 2
    try:
        subjects = [resolve(ref).implementation for ref in options.subject.split(",")]
    except BadSubject as error:
        print(f"accelerator: {error}", file=sys.stderr)
        return 2
    console = Console()
    rows = measured(subjects, asked, device, console)
    console.print(table(rows, device))
    return 0 if all(m.holds(p) for *_, found in rows for m, p in zip(found, PRECISIONS, strict=True)) else 1


def found_device() -> str | None:
    """The accelerator that torch finds, by its name; None where there is none."""
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else None


def measured(subjects: list[Implementation], asked: list[str], device: str, console: Console) -> list[Row]:
    """Every subject's methods in every precision."""
    pairs = [(s, v) for s in subjects for v in asked if v in s.variants]
    bar = track(pairs, "asking", console=console, transient=True)
    return [(s, v, [measure(s, v, p, device) for p in PRECISIONS]) for s, v in bar]


def table(rows: list[Row], device: str) -> Table:
    """The worst ratio of each method in each precision, beside the threshold."""
    made = Table(title=f"worst ratio on {device}", title_justify="left", caption_justify="left")
    for head in ("subject", "method", *(f"{p.name} (up to {p.threshold:g})" for p in PRECISIONS)):
        made.add_column(head)
    notes = []
    for subject, variant, found in rows:
        made.add_row(subject.name, variant, *map(cell, found, PRECISIONS))
        worse = [m for m, p in zip(found, PRECISIONS, strict=True) if not m.holds(p)]
        notes += [f"{subject.name} {variant}: {m.trouble or m.of}" for m in worse]
    made.caption = "\n".join(notes).replace("[", "\\[")
    return made


def cell(found: Measured, precision: Precision) -> str:
    """The ratio, marked where rounding does not explain it."""
    if found.trouble:
        return "raised"
    return f"{found.ratio:.3g}" + ("" if found.holds(precision) else " (!)")


if __name__ == "__main__":
    sys.exit(main())

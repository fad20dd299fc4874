"""The command verify-merge: one row for each tensor that the adapter changes or that is not as it should be."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from harness.checkpoints.merge_judgement import VERIFIED, Judgement
from harness.checkpoints.verify_merge import Verification, exit_code


def add_command(commands: Any) -> None:
    """The sub-command and its options."""
    parser = commands.add_parser(
        "verify-merge",
        help="is this merged checkpoint the base with this adapter?",
        description="Exit 0: every tensor verified; 1: something is wrong; 2: unreadable; 3: something is undecided.",
    )
    for name in ("base", "adapter", "merged"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="the judgements as JSON")
    parser.add_argument("--all", action="store_true", help="a row for every tensor, those that are right too")
    parser.set_defaults(run=run, command_name="verify-merge")


def run(options: argparse.Namespace) -> int:
    """Judge, print, and the exit code."""
    verification = Verification(options.base, options.adapter, options.merged)
    judgements = _with_progress(verification)
    adapted = set(verification.asked)
    if options.json:
        print(json.dumps([_plain(j) for j in judgements], indent=1, ensure_ascii=False))
    else:
        _print(judgements, adapted, options.all)
    return exit_code(judgements)


def _with_progress(verification: Verification) -> list[Judgement]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        return list(progress.track(verification, total=len(verification), description="tensors"))


def _plain(judgement: Judgement) -> dict[str, Any]:
    data = dataclasses.asdict(judgement)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


def _print(judgements: list[Judgement], adapted: set[str], everything: bool) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    table = Table("tensor", "verdict", "share", "‖ΔW‖/‖W‖", "why", box=None)
    for j in judgements:
        if everything or j.verdict != VERIFIED or (j.tensor in adapted and len(adapted) <= 40):
            table.add_row(j.tensor, j.verdict, _short(j.found), _short(j.size), j.reason)
    if table.row_count:
        console.print(table)
    counts = Counter(j.verdict for j in judgements if j.tensor in adapted)
    others = [j for j in judgements if j.tensor not in adapted]
    right = sum(j.verdict == VERIFIED for j in others)
    words = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
    console.print(f"{len(adapted)} tensors adapted: {words}; {right} of {len(others)} others as in the base")


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) and value else ""

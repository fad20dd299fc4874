"""The command vectors: ask any program that merges or converts adapters, or write the corpus out for others."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.checkpoints.rounding_replay import SINGLE, ulp
from oracles.vectors.corpus import Vector, vectors
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.writer import HOME

RIGHT, WRONG, REFUSED, TAKEN = "right", "wrong", "refused", "taken"
TAKEN_REASON = "it has to be refused: {}"


@dataclass(frozen=True)
class Answer:
    """What a consumer made of one vector."""

    vector: str
    verdict: str  # RIGHT, WRONG, REFUSED (where it should not have been) or TAKEN (where it should have been refused)
    reason: str = ""


def add_command(commands: Any) -> None:
    """The sub-command, with its own two."""
    parser = commands.add_parser("vectors", help="checkpoint vectors: run a program on them, or export them")
    parts = parser.add_subparsers(required=True, metavar="run | export")
    run = parts.add_parser(
        "run",
        description="Exit 0: every vector that is asked is right; 1: some is not. The command is run once per "
        "vector, without a shell; it is refused by an exit code other than 0.",
    )
    run.add_argument("--command", required=True, help='"tool --base {base} --adapter {adapter} --out {out}"')
    run.add_argument(
        "--only", default="", metavar="PREFIXES", help="comma-separated beginnings of vectors' names"
    )
    run.add_argument("--corpus", type=Path, default=HOME, metavar="DIR")
    run.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    run.set_defaults(run=_run, command_name="vectors run")
    export = parts.add_parser("export", description="The corpus as it stands, for consumers in any language.")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.set_defaults(run=_export, command_name="vectors export")


def _export(options: argparse.Namespace) -> int:
    if options.folder.exists() and any(options.folder.iterdir()):
        raise Unreadable(f"{options.folder} is not empty")
    shutil.copytree(HOME, options.folder, dirs_exist_ok=True)
    print(f"{len(list(vectors(options.folder)))} vectors in {options.folder}")
    return 0


def _run(options: argparse.Namespace) -> int:
    chosen = list(selected(options.corpus, options.only))
    if not chosen:
        raise Unreadable(f"no vector's name starts with {options.only!r}")
    for place in ("{base}", "{adapter}", "{out}"):
        if place not in options.command:
            raise Unreadable(f"the command lacks {place}: {options.command!r}")
    answers = [_ask(vector, options.command, options.timeout) for vector in chosen]
    report(answers)
    return 0 if all(a.verdict == RIGHT for a in answers) else 1


def selected(corpus: Path, only: str) -> Iterator[Vector]:
    """The vectors whose names start with one of the comma-separated beginnings."""
    beginnings = tuple(part for part in only.split(",") if part) or ("",)
    return (vector for vector in vectors(corpus) if vector.id.startswith(beginnings))


def _ask(vector: Vector, command: str, timeout: float) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merged"
        places = {"base": str(vector.base), "adapter": str(vector.adapter), "out": str(out)}
        words = [part.format(**places) for part in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
        except FileNotFoundError:
            raise Unreadable(f"there is no program {words[0]!r}") from None
        except subprocess.TimeoutExpired:
            return Answer(vector.id, WRONG, f"no answer within {timeout:g} s")
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            return refusal(vector, said[-1] if said else f"exit code {done.returncode}")
        return merged_answer(vector, out)


def refusal(vector: Vector, said: str) -> Answer:
    """The consumer refused a vector."""
    if vector.about["expect"] in ("refuse", "apply_or_refuse"):
        return Answer(vector.id, RIGHT)
    return Answer(vector.id, REFUSED, said[:120])


def merged_answer(vector: Vector, out: Path) -> Answer:
    """What a merged folder shows; raises nothing."""
    if vector.about["expect"] == "refuse":
        return Answer(vector.id, TAKEN, TAKEN_REASON.format(vector.about["why_refused"]))
    try:
        merged = BaseCheckpoint(out)
        stored = {name: _place(vector, merged, name) for name in vector.untied}
        missing = [name for name, place in stored.items() if place is None]
        if missing:
            return Answer(vector.id, WRONG, f"the merged folder has no {missing[0]}")
        return judged(vector, {n: merged.tensors.tensor(p) for n, p in stored.items() if p is not None})
    except Unreadable as why:
        return Answer(vector.id, WRONG, str(why))


def _place(vector: Vector, merged: BaseCheckpoint, name: str) -> str | None:
    """Where the merged folder holds a tensor; what is tied in the base may still be."""
    tied = vector.model.get("tied", {}).get(name, "")
    return merged.stored(name) or merged.stored(tied)


def judged(vector: Vector, merged: dict[str, Tensor]) -> Answer:
    """Right, or wrong with the tensor, the entry, and the wrong reading that it equals."""
    worst, name = max((excess(vector, n, merged[n], right), n) for n, right in vector.merged.items())
    if worst <= 1:
        return Answer(vector.id, RIGHT)
    found = merged[name].double()
    if found.shape != vector.merged[name].shape:
        return Answer(vector.id, WRONG, f"{name} has shape {tuple(found.shape)}")
    at = int((found - vector.merged[name]).abs().nan_to_num(nan=torch.inf).argmax())
    wanted, got = float(vector.merged[name].flatten()[at]), float(found.flatten()[at])
    entry = f"{name} entry {at}: {wanted:.6g} expected, {got:.6g} found"
    return Answer(vector.id, WRONG, f"{likeness(vector, merged) or 'no known reading'}; {entry}")


def excess(vector: Vector, name: str, found: Tensor, right: Tensor) -> float:
    """The largest error of a tensor in units of what rounding may do; above one is wrong."""
    if found.shape != right.shape:
        return float("inf")
    base = getattr(torch, vector.about["flags"]["base_dtype"])
    coarse = [
        base,
        *(getattr(torch, d) for d in vector.about["flags"]["dtypes"] if hasattr(torch, d)),
        found.dtype,
    ]
    coarse = [dtype for dtype in coarse if dtype.is_floating_point]
    unit = max(torch.finfo(dtype).eps for dtype in coarse)
    delta = (right - vector.untied[name]).abs()
    typical = float((right.square().mean() + delta.square().mean()).sqrt())
    allowed = 4 * ulp(right, torch.float32) + 4 * max(unit, 32 * SINGLE) * (right.abs() + delta + typical)
    gap = (found.double() - right).abs() / allowed
    return float(gap.nan_to_num(nan=torch.inf).max()) if gap.numel() else 0.0


def likeness(vector: Vector, merged: dict[str, Tensor]) -> str:
    """The sentence of the wrong reading that a merged model equals; empty where it equals none."""
    for wrong in vector.about["wrong_readings"]:
        reading = vector.reading(wrong["id"])
        if all(excess(vector, name, merged[name], reading[name]) <= 1 for name in reading):
            return str(wrong["sentence"])
    return ""


def report(answers: list[Answer]) -> None:
    """What is not right, one row each, and the counts."""
    console = Console(width=None if Console().is_terminal else 180)
    table = Table("vector", "verdict", "why", box=None)
    for answer in answers:
        if answer.verdict != RIGHT:
            table.add_row(answer.vector, answer.verdict, answer.reason)
    if table.row_count:
        console.print(table)
    counts = Counter(a.verdict for a in answers)
    console.print(f"{len(answers)} vectors: " + ", ".join(f"{n} {v}" for v, n in sorted(counts.items())))

"""`python -m tests.mutants`: break the code in one place after the other, and see whether the audit notices."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.mutants import pool
from tests.mutants.ask import ROOT, VARIANTS
from tests.mutants.mutate import Mutant, mutants

SHARED = ("adapter", "target", "kinds", "switch", "merging", "peft_config", "quantised")
SUBJECT = (*(f"src/lora_lite/variants/{v}.py" for v in VARIANTS), *(f"src/lora_lite/{s}.py" for s in SHARED))
ORACLES = (*(f"oracles/variants/{v}.py" for v in VARIANTS), "oracles/variants/paper.py", "oracles/peft.py")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
GOAL = 0.95


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where at least 95 % of the mutants that are no equivalent ones died."""
    given = parser().parse_args(arguments)
    chosen = select(given.files or [*SUBJECT, *ORACLES], given.sample, given.seed)
    print(f"{len(chosen)} mutants, {given.jobs} at a time", flush=True)
    start = time.monotonic()
    fates = pool.fates(chosen, given.jobs, given.seconds, given.examples)
    alive = [
        i for i, (m, fate) in enumerate(zip(chosen, fates, strict=True)) if not fate and not equivalent(m)
    ]
    tested = pool.unit_tests(chosen, alive, given.jobs, given.seconds)
    told = table(chosen, fates, tested)
    print(told, f"\n{time.monotonic() - start:.0f} s")
    if given.json:
        facts = records(chosen, fates, tested)
        given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(score(chosen, fates) < GOAL)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    top.add_argument(
        "files", nargs="*", metavar="FILE[:LINE]", help="default: the subject's and the oracles' files"
    )
    top.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by --seed")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--jobs", type=int, default=2)
    top.add_argument(
        "--seconds", type=float, default=300.0, help="limit of one claim; a mutant that hangs is dead"
    )
    top.add_argument("--examples", type=int, nargs="+", default=[4, 12], help="of one stage after the other")
    top.add_argument("--json", type=Path, metavar="PATH", help="every mutant and its fate")
    return top


def select(files: Iterable[str], sample: int | None, seed: int) -> list[Mutant]:
    """All mutants of the files, or ``sample`` of them, in order."""
    found = [m for place in files for m in _of(*place.partition(":")[::2])]
    if sample is None or sample >= len(found):
        return found
    return [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), sample))]


def _of(file: str, line: str) -> list[Mutant]:
    found = mutants(file, (ROOT / file).read_text(encoding="utf-8"))
    return [m for m in found if not line or m.line == int(line)]


def equivalent(mutant: Mutant) -> str | None:
    """Why no audit could tell this mutant from the original, where docs/kill_rate.md argues so."""
    argued = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.is_file() else []
    own = [e for e in argued if e["file"] == mutant.file and e["diff"] == mutant.diff]
    return own[0]["because"] if own else None


def score(chosen: Sequence[Mutant], fates: Sequence[str]) -> float:
    """The share of the non-equivalent mutants that died."""
    counted = [f for m, f in zip(chosen, fates, strict=True) if f or not equivalent(m)]
    return sum(bool(f) for f in counted) / max(len(counted), 1)


def table(chosen: Sequence[Mutant], fates: Sequence[str], tested: Mapping[int, str]) -> str:
    """Scores per file and per check, and every mutant that the audit let live."""
    files = list(dict.fromkeys(m.file for m in chosen))
    lines = [
        "| file | mutants | killed | equivalent | by unit tests alone | alive | score |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    places = {file: [i for i, m in enumerate(chosen) if m.file == file] for file in files}
    lines += [_row(file, own, chosen, fates, tested) for file, own in places.items()]
    lines += [_row("all", range(len(chosen)), chosen, fates, tested)]
    lines += ["", "| first claim to fail | mutants |", "|---|--:|"]
    checks = Counter(fate.partition("[")[0] for fate in fates if fate)
    lines += [f"| {check} | {n} |" for check, n in sorted(checks.items(), key=lambda kv: (-kv[1], kv[0]))]
    return "\n".join([*lines, "", *survivors(chosen, fates, tested)])


def _row(
    name: str, own: Sequence[int], chosen: Sequence[Mutant], fates: Sequence[str], tested: Mapping[int, str]
) -> str:
    killed = sum(bool(fates[i]) for i in own)
    same = sum(not fates[i] and bool(equivalent(chosen[i])) for i in own)
    units = sum(bool(tested.get(i)) for i in own)
    left = len(own) - killed - same - units
    percent = 100 * score([chosen[i] for i in own], [fates[i] for i in own])
    return f"| {name} | {len(own)} | {killed} | {same} | {units} | {left} | {percent:.1f} % |"


def survivors(chosen: Sequence[Mutant], fates: Sequence[str], tested: Mapping[int, str]) -> list[str]:
    """Each mutant that the audit let live: where, what, and why it is equivalent or which unit test it fails."""
    alive = [i for i, fate in enumerate(fates) if not fate]
    return [f"{chosen[i].name}{_remark(chosen[i], tested.get(i))}\n{chosen[i].diff}\n" for i in alive]


def _remark(mutant: Mutant, test: str | None) -> str:
    if why := equivalent(mutant):
        return f" (equivalent: {why})"
    return f" (killed by {test})" if test else ""


def records(
    chosen: Sequence[Mutant], fates: Sequence[str], tested: Mapping[int, str]
) -> list[dict[str, object]]:
    """Every mutant as plain data."""
    return [
        {
            "file": m.file,
            "line": m.line,
            "kind": m.kind,
            "diff": m.diff,
            "killed_by": fate,
            "unit_test": tested.get(i),
            "because": equivalent(m),
        }
        for i, (m, fate) in enumerate(zip(chosen, fates, strict=True))
    ]


if __name__ == "__main__":
    sys.exit(main())

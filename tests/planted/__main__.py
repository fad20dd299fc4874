"""`python -m tests.planted`: the same forty faults planted in three libraries. Does the audit tell them?

Nothing is copied or written: a file's source is changed as it is imported, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.faults import audits
from tests.faults.audits import Result, Run
from tests.planted.catalogue import FAULTS, Fault
from tests.planted.libraries import LIBRARIES, Library
from tests.planted.planting import PLANTED, plant

GOAL = 0.95
IN_WORKER = "tests/planted/in_worker.py:Subject"
KILLS = ("fail", "error", "unverified")
# Asked of every fault. What lives is asked everything.
FIRST = (
    "shapes.", "init.", "step0.", "scale.", "dropout.", "merge.", "dtype.output", "dtype.identity", "training.alive",
    "forward.at_init", "forward.random_parameters", "forward.gradients", "forward.input_gradient", "forward.modes",
    "forward.linear", "forward.pure", "forward.eval_mode", "forward.stale_weights", "save_load.round_trip",
    "save_load.stored", "lifecycle.merged", "lifecycle.unmerge",
)  # fmt: skip
EVERYTHING = (*FIRST, "forward.", "dtype.", "training.", "save_load.", "lifecycle.", "contexts.")
Word = Literal["named", "killed", "told", "lived", "nowhere", "error"]


@dataclass(frozen=True)
class Fate:
    """What became of one fault in one library; ``by``: the finding's title, the claim, or why there is none."""

    library: str
    fault: Fault
    word: Word
    by: str


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where at least 95 % of what can be planted is killed in every library; 4: a bad command line."""
    given = parser().parse_args(arguments)
    chosen = [f for f in FAULTS if not given.only or any(re.search(p, f.id) for p in given.only)]
    libraries = [LIBRARIES[name] for name in given.library or LIBRARIES]
    if not chosen:
        print(f"planted: no fault's id has {' or '.join(given.only)} in it", file=sys.stderr)
        return 4
    fates = [fate for library in libraries for fate in fates_in(library, chosen, given)]
    print(text := report(fates))
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    return int(any(score([f for f in fates if f.library == library.name]) < GOAL for library in libraries))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    top.add_argument(
        "only", nargs="*", metavar="PATTERN", help="only faults whose id this regular expression finds"
    )
    top.add_argument("--library", action="append", choices=list(LIBRARIES), help="default: all three")
    top.add_argument(
        "--keep", action="store_true", help="use results of earlier states of the audit's code, too"
    )
    top.add_argument("--seconds", type=float, default=900.0, help="limit of one audit")
    top.add_argument("--output", type=Path, metavar="PATH", help="write the tables there, too")
    return top


def fates_in(library: Library, faults: Sequence[Fault], given: Any) -> list[Fate]:
    """What becomes of the faults in one library: asked stage by stage, as long as nothing is seen."""
    here = [f for f in faults if not isinstance(library.places[f.id], str)]
    nowhere = [Fate(library.name, f, "nowhere", str(library.places[f.id])) for f in faults if f not in here]
    found: dict[str, Fate] = {}
    for checks, apart in _stages(library):
        left = [f for f in here if f.id not in found or found[f.id].word == "lived"]
        if not left:
            break
        runs = {f: _run(library, f.id, checks, apart) for f in left}
        sound = _run(library, "sound", checks, apart)
        told = _asked([sound, *runs.values()], given)
        found |= {f.id: judged(library.name, f, told[sound], told[run]) for f, run in runs.items()}
    return [*found.values(), *nowhere]


def _stages(library: Library) -> list[tuple[tuple[str, ...], bool]]:
    """(checks, whether in a process of its own): a reference cannot be compared with itself where it is planted in."""
    apart = bool(library.apart)
    return [(FIRST, False), *([(FIRST, True)] if apart else []), (EVERYTHING, apart)]


def _run(library: Library, fault: str, checks: tuple[str, ...], apart: bool = False) -> Run:
    ref, requires = (IN_WORKER, library.apart) if apart else (library.ref, library.requires)
    label = f"{library.name} {fault}"
    return Run(ref, requires, "lora", checks, only=True, here=not apart, label=label)


def _asked(runs: Sequence[Run], given: Any) -> Mapping[Run, Result]:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return audits.results(runs, keep_old=given.keep, seconds=given.seconds, say=say, prepare=prepare)


def prepare(run: Run) -> None:
    """Plant the run's fault where the library is imported: in this process, or in the worker that it starts."""
    name, _, fault = run.label.partition(" ")
    if run.here:
        plant(name, fault)
    else:
        os.environ[PLANTED] = run.label


def judged(library: str, fault: Fault, sound: Result, broken: Result) -> Fate:
    """Killed by a claim that the library as it is holds; named where a bug that rests on one says the right thing."""
    if sound.error or broken.error:
        return Fate(library, fault, "error", str(sound.error or broken.error))
    killers = [
        c for c, o in broken.outcomes.items() if o in KILLS and sound.outcomes.get(c) in ("pass", "declared")
    ]
    if not killers:
        return Fate(library, fault, "lived", "every claim that holds without it holds with it")
    own = [f for f in broken.findings if set(killers) & set(f.asked)]
    right = re.compile(fault.right, re.IGNORECASE | re.DOTALL)
    for word, findings in (
        ("named", [f for f in own if f.tag == "BUG" and right.search(f.title)]),
        ("killed", [f for f in own if f.tag == "BUG"]),
        ("told", own),
    ):
        if findings:
            return Fate(library, fault, word, findings[0].title)  # type: ignore[arg-type]
    return Fate(library, fault, "killed", killers[0])


def score(fates: Sequence[Fate]) -> float:
    """The share of what can be planted that is killed."""
    there = [f for f in fates if f.word not in ("nowhere", "error")]
    return sum(f.word in ("named", "killed") for f in there) / max(len(there), 1)


def report(fates: Sequence[Fate]) -> str:
    """Totals per library, the forty side by side, and what lived or went under another name."""
    names = list(dict.fromkeys(f.library for f in fates))
    lines = [
        "| library | planted | right name | killed | told, no bug | lived | no such place | killed, of planted |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_totals(name, [f for f in fates if f.library == name]) for name in names]
    lines += ["", f"| fault | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for fault in FAULTS:
        own = {f.library: f for f in fates if f.fault == fault}
        if own:
            cells = [f"{own[n].word}: {own[n].by}".replace("|", "\\|") if n in own else "" for n in names]
            lines.append(f"| `{fault.id}`: {fault.said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _totals(name: str, own: Sequence[Fate]) -> str:
    count = {
        word: sum(f.word == word for f in own) for word in ("named", "killed", "told", "lived", "nowhere")
    }
    planted_ = sum(count[word] for word in ("named", "killed", "told", "lived"))
    cells = (name, planted_, count["named"], count["named"] + count["killed"], count["told"], count["lived"],
             count["nowhere"], f"{100 * score(own):.0f} %")  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())

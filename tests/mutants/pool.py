"""Mutants in forked processes: torch and PEFT are imported once, each mutant costs its claims alone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.mutants import ask
from tests.mutants.mutate import Mutant
from tests.scratch import scratch

FORK = multiprocessing.get_context("fork")
# What a process runs, and on what; it is given an `ask.Say` too.
Task = tuple[Callable[..., None], tuple[Any, ...]]


@dataclass
class Job:
    """One process, and what it last said."""

    index: int
    process: Any
    ear: Connection
    since: float = field(default_factory=time.monotonic)
    at: str = "import"


@scratch()
def fates(chosen: Sequence[Mutant], jobs: int, seconds: float, stages: Sequence[int]) -> list[str]:
    """What killed each mutant, or "" for a survivor of every stage (so many examples per check)."""
    _import_what_does_not_change()
    found = [""] * len(chosen)
    for examples in stages:
        held = {file: _holds(file, examples) for file in dict.fromkeys(m.file for m in chosen)}

        def judged(mutant: Mutant, examples: int = examples, held: dict[str, frozenset[str]] = held) -> Task:
            return ask.judge, (mutant.file, mutant.source, examples, held[mutant.file])

        left = [i for i, fate in enumerate(found) if not fate]
        for index, fate in _race(chosen, left, judged, jobs, seconds):
            found[index] = fate
            _tick(chosen[index], fate)
    return found


def unit_tests(chosen: Sequence[Mutant], left: list[int], jobs: int, seconds: float) -> dict[int, str]:
    """Index -> the unit test that fails on a mutant which the audit let live, "" where none does."""
    found = {}
    for index, fate in _race(chosen, left, lambda m: (ask.unit_test, (m.file, m.source)), jobs, seconds):
        found[index] = fate
        _tick(chosen[index], fate)
    return found


def _import_what_does_not_change() -> None:
    import torch

    from harness.engine.session import load_checks, load_references

    torch.set_num_threads(1)
    load_checks()
    load_references()
    gc.freeze()  # what is not touched is not copied


def _holds(file: str, examples: int) -> frozenset[str]:
    """The claims that the unbroken file passes."""
    ear, mouth = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run, args=(mouth, ask.baseline, file, examples))
    process.start()
    mouth.close()
    held = set()
    while (said := ear.recv())[0] != "survived":
        if said[0] == "holds":
            held.add(said[1])
    process.join()
    return frozenset(held)


def _run(mouth: Connection, target: Any, *args: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        target(*args, mouth.send)
    except BaseException as error:
        mouth.send(("killed", f"import: {type(error).__name__}"))
    finally:
        mouth.close()
        os._exit(0)


def _start(index: int, task: Task) -> Job:
    ear, mouth = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run, args=(mouth, task[0], *task[1]))
    process.start()
    mouth.close()
    return Job(index, process, ear)


def _race(
    chosen: Sequence[Mutant], left: list[int], task: Callable[[Mutant], Task], jobs: int, seconds: float
) -> Iterable[tuple[int, str]]:
    waiting, running = list(reversed(left)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index = waiting.pop()
            job = _start(index, task(chosen[index]))
            running[job.ear] = job
        for ear in wait(list(running), timeout=1.0):
            if (fate := _heard(running[ear])) is not None:
                yield running.pop(ear).index, fate
        for ear, job in list(running.items()):
            if time.monotonic() - job.since > seconds:
                job.process.kill()
                yield running.pop(ear).index, f"{job.at}: no answer within {seconds:g} s"


def _heard(job: Job) -> str | None:
    """What a process has said: None while it goes on."""
    try:
        word, what = job.ear.recv()
    except EOFError:
        return f"{job.at}: the process ended"
    job.since = time.monotonic()
    if word == "at":
        job.at = what
        return None
    job.process.join()
    return what


def _tick(mutant: Mutant, fate: str) -> None:
    print(f"{'killed  ' if fate else 'survived'} {mutant.name}  {fate}", file=sys.stderr, flush=True)

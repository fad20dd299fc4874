"""One claim may not disturb the next: global state is put in order before it and checked after it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from harness.compare.ear import listening

# Generous: a claim takes about a tenth of a second. Only a hang gets there.
CLAIM_SECONDS = 60.0
ASLEEP = 10.0  # seconds without a look: looks come every second, so the process itself was suspended
IDLE = 0.02  # a process that gets less of a processor than this is waiting, not crowded out


class ClaimTimeout(BaseException):
    """A claim ran past its limit. No Exception, so that no library's ``except Exception`` swallows it."""


class SubjectDied(BaseException):
    """The subject's own process is gone; the text says how it ended. No Exception: there is nothing to shrink."""


class StateChanged(Exception):
    """The subject left global state other than it found it."""


MISBEHAVES = (StateChanged, ClaimTimeout, SubjectDied)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a folder that is gone"


HOOKS = [
    name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith("hooks")
]


def _hooks() -> dict[str, dict[Any, Any]]:
    return {name: dict(getattr(torch.nn.modules.module, name)) for name in HOOKS}


def _facts() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's thread count": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's autocast on the CPU": torch.is_autocast_enabled("cpu"),
        "torch's global module hooks": _hooks(),
        "the working directory": _folder(),
        "the environment": dict(os.environ),
    }


def _restore(facts: dict[str, Any]) -> None:
    torch.set_default_dtype(facts["torch's default dtype"])
    torch.set_grad_enabled(facts["torch's gradient mode"])
    torch.set_num_threads(facts["torch's thread count"])
    torch.use_deterministic_algorithms(facts["torch's deterministic mode"])
    torch.set_autocast_enabled("cpu", facts["torch's autocast on the CPU"])
    for name, hooks in facts["torch's global module hooks"].items():
        table = getattr(torch.nn.modules.module, name)
        if dict(table) != hooks:
            table.clear()
            table.update(hooks)
    if facts["the environment"] != dict(os.environ):
        os.environ.clear()
        os.environ.update(facts["the environment"])
    with suppress(FileNotFoundError):
        os.chdir(facts["the working directory"])


def _difference(what: str, before: Any, after: Any) -> str:
    """``changed X from A to B``; for tables only which entries, never their values."""
    if isinstance(before, dict):
        changed = sorted(str(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        return f"changed {what} ({', '.join(changed)})"
    return f"changed {what} from {before} to {after}"


class Watched(Protocol):
    """State in a subject's own process, where the subject is the one that changes it."""

    def mark(self) -> None:
        """Note the state."""

    def computed(self) -> float:
        """Seconds of processor time that the process has used."""

    def restore(self) -> list[tuple[str, Any, Any]]:
        """Put the state back; (what, before, after) of everything that was left changed."""


@contextmanager
def global_state(subject: object = None) -> Iterator[None]:
    """Random generators restored afterwards; a change of torch's modes or of the folder raises StateChanged.

    The state of the process of its own that a ``subject`` may have is watched as well.
    """
    elsewhere: Watched | None = getattr(subject, "elsewhere", None)
    if elsewhere is not None:
        elsewhere.mark()
    before = _facts()
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with listening(subject):
            yield
        after = _facts()
    finally:
        changed = elsewhere.restore() if elsewhere is not None else []
        _restore(before)
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
        np.random.set_state(generators[2])
    changed += [(what, value, after[what]) for what, value in before.items() if after[what] != value]
    for what, was, now in changed:
        raise StateChanged(f"the subject {_difference(what, was, now)} and left it so")


@dataclass
class Stopwatch:
    """Time spent in a claim: computing, and waiting for nothing.

    Time in which others had the processor, or in which the process or the machine was suspended, is neither.
    """

    wall: float = field(default_factory=time.monotonic)
    processor: float = field(default_factory=time.process_time)
    computed: float = 0.0
    waited: float = 0.0
    elsewhere: Callable[[], float] = lambda: 0.0  # seconds of processor time of a subject's own process
    there: float = 0.0

    def look(self) -> float:
        """The larger of the two so far, in seconds."""
        wall, processor, there = time.monotonic(), time.process_time(), self.elsewhere()
        passed, used = wall - self.wall, processor - self.processor + max(there - self.there, 0.0)
        self.wall, self.processor, self.there = wall, processor, there
        self.computed += used
        self.waited += passed if used < IDLE * passed and passed < ASLEEP else 0.0
        return max(self.computed, self.waited)


@contextmanager
def time_limit(subject: object = None) -> Iterator[None]:
    """Raise ClaimTimeout in the block after CLAIM_SECONDS of computing or of waiting, however busy the machine is.

    What a process of the ``subject``'s own computes counts as computing. No limit where the platform or the thread
    has no alarm.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    elsewhere: Watched | None = getattr(subject, "elsewhere", None)
    seconds, watch = CLAIM_SECONDS, Stopwatch()
    if elsewhere is not None:
        watch = Stopwatch(elsewhere=elsewhere.computed, there=elsewhere.computed())

    def look(signum: int, frame: FrameType | None) -> None:
        if watch.look() >= seconds:
            raise ClaimTimeout(f"no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, look)
    tick = min(1.0, seconds / 8)
    signal.setitimer(signal.ITIMER_REAL, tick, tick)  # raised again at every tick, should one be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

"""One claim may not disturb the next: global state is put in order before it and checked after it."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch

# Generous: a claim takes about a tenth of a second. Only a hang gets there.
CLAIM_SECONDS = 60.0


class ClaimTimeout(BaseException):
    """A claim ran past its limit. No Exception, so that no library's ``except Exception`` swallows it."""


class StateChanged(Exception):
    """The subject left global state other than it found it."""


def _facts() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's thread count": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the working directory": os.getcwd(),
    }


def _restore(facts: dict[str, Any]) -> None:
    torch.set_default_dtype(facts["torch's default dtype"])
    torch.set_grad_enabled(facts["torch's gradient mode"])
    torch.set_num_threads(facts["torch's thread count"])
    torch.use_deterministic_algorithms(facts["torch's deterministic mode"])
    os.chdir(facts["the working directory"])


@contextmanager
def global_state() -> Iterator[None]:
    """Random generators restored afterwards; a change of torch's modes or of the folder raises StateChanged."""
    before = _facts()
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        after = _facts()
    finally:
        _restore(before)
        torch.set_rng_state(generators[0])
        random.setstate(generators[1])
        np.random.set_state(generators[2])
    for what, value in before.items():
        if after[what] != value:
            raise StateChanged(f"the subject changed {what} from {value} to {after[what]} and left it so")


@contextmanager
def time_limit(seconds: float = CLAIM_SECONDS) -> Iterator[None]:
    """Raise ClaimTimeout in the block after ``seconds``; no limit where the platform or thread has no alarm."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise ClaimTimeout(f"no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again, should the first be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

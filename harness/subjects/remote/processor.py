"""One processor for the audit and the subject's process, which take turns and never compute at the same time.

On two, every turn has to wake the other one: a claim took 2.46 times what it takes in process, and 2.20 times on one
processor (median, docs/worker.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

import psutil


class SharedProcessor:
    """Where the two compute, for as long as the subject's process lives; nothing where the system has no such wish."""

    def __init__(self) -> None:
        self.before: Iterable[int] | None = None  # where this process could go; None: it still can

    def take(self, subject: int) -> None:
        """Put this process and the ``subject``'s (its number) on one processor, unless they are."""
        if self.before is not None or not hasattr(os, "sched_setaffinity"):
            return
        with suppress(OSError, psutil.Error):
            self.before = os.sched_getaffinity(0)
            number = chosen(sorted(self.before))
            os.sched_setaffinity(subject, {number})
            os.sched_setaffinity(0, {number})

    def leave(self) -> None:
        """Let this process go wherever it could go before."""
        if self.before is not None:
            with suppress(OSError):
                os.sched_setaffinity(0, self.before)
            self.before = None


def chosen(processors: list[int]) -> int:
    """Each of pytest's workers has its own; without such, the one that this process is on at the moment."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker.isdigit():
        return processors[int(worker) % len(processors)]
    here = int(psutil.Process().cpu_num())
    return here if here in processors else processors[0]

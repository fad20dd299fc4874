"""How long a block took and how much memory it had at most."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = resource.getpagesize()
EVERY = 0.02  # seconds between two looks


@dataclass
class Cost:
    """Seconds by the clock and of processor time, and the most resident memory in bytes seen meanwhile."""

    seconds: float = 0.0
    processor: float = 0.0
    peak: int = 0


def resident() -> int:
    """This process's resident memory in bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * PAGE
    return peak()


def peak() -> int:
    """The most resident memory this process ever had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def cost() -> Iterator[Cost]:
    """A :class:`Cost`, filled when the block ends; memory is looked at fifty times a second."""
    found, done = Cost(peak=resident()), threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            found.peak = max(found.peak, resident())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    start, worked = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found.seconds, found.processor = time.perf_counter() - start, time.process_time() - worked
        done.set()
        watcher.join()
        found.peak = max(found.peak, resident())

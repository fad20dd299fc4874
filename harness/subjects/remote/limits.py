"""What a subject's process may use: the operating system's limits, and how an end of the process is told."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 300.0  # importing a library: transformers and a cold disk take a minute
ANSWER_SECONDS = 150  # of processor time for one answer; a claim's own limit ends it sooner
ROOM = 0.75  # of the machine's memory
LEAST = 4 << 30  # bytes of address space below which torch does not start
WORDS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "abort",
    "SIGFPE": "an arithmetic fault",
    "SIGBUS": "a bus error",
    "SIGILL": "an illegal instruction",
    "SIGKILL": "SIGKILL, as the system sends it where memory runs out",
    "SIGXCPU": "its limit of processor time",
}


@dataclass(frozen=True)
class Limits:
    """``address_space`` in bytes (None: no limit), processor ``seconds`` for an answer, wall seconds to ``start``."""

    address_space: int | None
    seconds: int = ANSWER_SECONDS
    start: float = START_SECONDS


def default() -> Limits:
    """Three quarters of the machine's memory as address space, more than any honest adapter of a small layer takes."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Limits(None)
    return Limits(max(int(memory * ROOM), LEAST))


def ending(code: int | None) -> str:
    """How a process ended, in words, from its return code."""
    if code is None:
        return "closed its connection"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"was ended by signal {-code}"
    return f"was ended by {WORDS.get(name, name)}"


NOISE = re.compile(r"^(Current thread|Thread|Extension modules:|$)")


def last_words(log: Path, since: int, lines: int = 3) -> str:
    """The last lines that a process wrote, from byte ``since`` of its log; of a crash, the fault's first lines."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(since, log.stat().st_size - 8192))
            written = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    written = [line.strip() for line in written if not NOISE.match(line.strip())]
    fault = next((i for i, line in enumerate(written) if line.startswith("Fatal Python error")), None)
    chosen = written[fault : fault + lines] if fault is not None else written[-lines:]
    return " | ".join(line[:200] for line in chosen)

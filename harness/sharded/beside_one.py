"""What several ranks found beside what one process found, question by question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from harness.sharded.jobs import Job
from harness.sharded.ranks import Broke, alone, together
from oracles.implementation import Unsupported

QUESTIONS = {
    "start": "start",
    "output": "output",
    "gradient": "gradients",
    "steps": "steps",
    "file": "file",
}
# Of the largest entry, in float64: sums in another order, through ten steps.
TOLERANCE = 1e-10
EQUAL = "equal"


@dataclass(frozen=True)
class Row:
    """One job: an answer to each question, "equal" or what is the matter, or one sentence for all of them."""

    job: Job
    answers: Mapping[str, str]
    ended: str = ""

    @property
    def holds(self) -> bool:
        """Whether every question is answered as in one process."""
        return not self.ended and set(self.answers.values()) == {EQUAL}

    @property
    def cells(self) -> list[str]:
        """What is said of each question, in their order."""
        return [self.ended or self.answers[q] for q in QUESTIONS.values()]

    @property
    def matters(self) -> list[str]:
        """What is the matter, each once."""
        return [c for c in dict.fromkeys(self.cells) if c != EQUAL]


def compared(job: Job, ranks: int) -> Row:
    """One job on ``ranks`` processes, beside the same in one."""
    try:
        expected = alone(job)
    except Unsupported as why:
        return Row(job, {}, f"not offered: {why}")
    try:
        found, unsaved = together(job, ranks)
    except Broke as why:
        return Row(job, {}, str(why))
    told = {words: _answer(expected, found, start) for start, words in QUESTIONS.items()}
    if unsaved:
        told["file"] = unsaved
    return Row(job, told)


def _answer(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], question: str) -> str:
    names = [n for n in expected if n.partition(" ")[0] == question]
    if missing := [n for n in names if n not in found or found[n].shape != expected[n].shape]:
        name = missing[0]
        got = f"has shape {tuple(found[name].shape)}" if name in found else "is not there"
        return f"{name} {got}, expected {tuple(expected[name].shape)}"
    worst = max(((_apart(found[n], expected[n]), n) for n in names), default=(0.0, ""))
    return EQUAL if worst[0] < TOLERANCE else f"{worst[1]} is off by {worst[0]:.2g} of its size"


def _apart(a: Tensor, b: Tensor) -> float:
    size = float(b.abs().max())
    distance = float((a - b).abs().max())
    return distance / size if size else distance

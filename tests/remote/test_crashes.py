"""A subject that takes its process down, or lies on the connection: one finding with a reason, and the next claim."""

from __future__ import annotations

import pytest
import torch

from harness.compare import isolation
from harness.engine.session import load_references
from tests.remote.served import served
from tests.subjects.judged import QUICK, once

FORWARD = "forward.random_parameters"
CASES = {
    "Segfaults": "ended by a segmentation fault: Fatal Python error: Segmentation fault",
    "Exits": "ended with exit code 7: bye",
    "HalfAMessage": "half a message: a message ends after 10 of 1000 bytes",
    "NoMessage": "expected a message, got the bytes b'HTTP/1.1'",
    "TooLarge": "a message of 10 + 4611686018427387904 bytes is announced: too large",
    "Nonsense": "an answer that makes no sense",
    "OutOfBounds": "an answer that makes no sense",
    "NoStatus": "an answer that makes no sense",
}
AGAIN = ("Segfaults", "HalfAMessage", "Nonsense")


@pytest.fixture(autouse=True, scope="module")
def _references() -> None:
    load_references()
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_is_one_finding_and_the_next_claim_gets_a_fresh_process(name: str) -> None:
    """The claim's error says how the process ended; asked again, another process says the same."""
    subject = served("crashes.py", name)
    first = subject.connection.worker.process.pid
    for _ in range(2 if name in AGAIN else 1):
        (claim,) = once(subject, ["lora"], lambda c: c.id == FORWARD, QUICK)
        assert claim.outcome == "error"
        assert claim.cause == "died"
        assert CASES[name] in (claim.reason or "")
    if name in AGAIN:
        assert subject.connection.worker.process.pid != first
    assert subject.connection.worker.process.poll() is not None, "it lives on"


def test_a_hang_kills_that_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's own limit ends the process, in the middle of its answer."""
    subject = served("crashes.py", "Hangs")
    monkeypatch.setattr(isolation, "CLAIM_SECONDS", 0.5)
    (claim,) = once(subject, ["lora"], lambda c: c.id == FORWARD, QUICK)
    assert (claim.outcome, claim.cause) == ("error", "hangs")
    assert subject.connection.worker.process.poll() is not None


def test_too_much_memory_is_the_subjects_own_error() -> None:
    """100 GB are refused by the system within the process, which lives on."""
    subject = served("crashes.py", "Takes100GB")
    (claim,) = once(subject, ["lora"], lambda c: c.id == FORWARD, QUICK)
    assert (claim.outcome, claim.cause) == ("unverified", "wrapper")  # its forward stands in the subject file
    assert "raised MemoryError in module(x)" in (claim.reason or "")
    assert subject.connection.worker.process.poll() is None


@pytest.mark.parametrize("name", ["Behaves", "PrintsGarbage"])
def test_what_is_printed_does_not_matter(name: str) -> None:
    """A right subject passes, however loud; what it printed is in the log."""
    subject = served("crashes.py", name)
    (claim,) = once(subject, ["lora"], lambda c: c.id == FORWARD, QUICK)
    assert claim.outcome == "pass", claim.reason
    log = subject.connection.command.log.read_bytes()
    assert (b"more garbage" in log) or name == "Behaves"


def test_processor_time_is_limited() -> None:
    """Outside of any claim's own limit the system ends a process that computes on and on."""
    subject = served("busy.py", "Busy", seconds=1)
    with pytest.raises(isolation.SubjectDied, match=r"ended by its limit of processor time"):
        subject.source("lora", "forward")

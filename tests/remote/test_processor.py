"""The audit and the subject's process share a processor while that lives, and this process is free again after it."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from harness.subjects.remote import processor
from harness.subjects.remote.connection import Connection, Elsewhere
from harness.subjects.remote.process import Command

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such wish here")
SUBJECT = Path(__file__).parents[2] / "harness" / "subjects" / "lora_lite.py"


def test_the_two_take_turns_on_one_processor() -> None:
    """From the first claim on both are on the same; the end of the subject's process sets this one free."""
    free = os.sched_getaffinity(0)
    connection = Connection(Command(Path(sys.executable), SUBJECT, ""))
    worker = connection.worker
    Elsewhere(connection).mark()
    assert os.sched_getaffinity(0) == os.sched_getaffinity(worker.process.pid)
    assert len(os.sched_getaffinity(0)) == 1
    worker.kill()
    assert os.sched_getaffinity(0) == free


def test_each_of_pytests_workers_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number, and the first again where there are more workers than processors."""
    found = []
    for name in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
        found.append(processor.chosen([4, 7]))
    assert found == [4, 7, 4]


def test_a_system_without_affinity_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken, nothing is left."""
    monkeypatch.setattr(processor, "os", types.SimpleNamespace(environ=os.environ))
    shared = processor.SharedProcessor()
    shared.take(os.getpid())
    shared.leave()
    assert shared.before is None

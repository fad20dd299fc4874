"""A subject of these tests in a process of its own: this same interpreter, the same packages."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from harness.subjects.remote import limits
from harness.subjects.remote.process import Command
from harness.subjects.remote.proxy import remote_subject
from oracles.implementation import Implementation

SUBJECTS = Path(__file__).parent / "subjects"
ROOT = Path(__file__).parents[2]


def served(file: str, attribute: str, **changes: object) -> Implementation:
    """The subject ``attribute`` of a file in ``subjects/``, with limits changed."""
    chosen = dataclasses.replace(limits.default(), **changes)  # type: ignore[arg-type]
    return remote_subject(Command(Path(sys.executable), SUBJECTS / file, attribute, chosen))

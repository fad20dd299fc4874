"""The files of a run: audit.json, the review, SARIF and HTML; each whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from harness.audit import Outputs
from reports.model import Run


def write(run: Run, outputs: Outputs, stdout: TextIO, say: Callable[[str], None]) -> int:
    """Judge the run and write what was asked for; 0 or 1, the exit code it deserves."""
    from reports import api

    return api.write(run, outputs, stdout, say)

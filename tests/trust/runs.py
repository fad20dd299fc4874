"""Audits as their users start them: `pytest harness/` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WRONG = f"{Path(__file__).with_name('wrong.py')}:Wrong"


@dataclass(frozen=True)
class Files:
    """What one run is told to write."""

    folder: Path

    @property
    def audit(self) -> Path:
        return self.folder / "audit.json"

    @property
    def review(self) -> Path:
        return self.folder / "review.md"

    @property
    def options(self) -> list[str]:
        return [f"--report={self.review}", f"--audit-json={self.audit}"]

    def bytes(self) -> tuple[bytes, bytes]:
        return self.audit.read_bytes(), self.review.read_bytes()


def command(*options: str) -> list[str]:
    """The audit's command line: quick, of the subject that has findings, unless said otherwise."""
    apart = f"--ignore={ROOT / 'harness' / 'test_references_agree.py'}"  # asks nothing of a subject
    given = ["--audit-profile=quick", "-q", "-p", "no:cacheprovider", apart, *options]
    if not any(o.startswith("--subject") for o in options):
        given.append(f"--subject={WRONG}")
    return [sys.executable, "-m", "pytest", str(ROOT / "harness"), "--rootdir", str(ROOT), *given]


def audit(
    *options: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(*options), cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def reports(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m reports`."""
    return subprocess.run(
        [sys.executable, "-m", "reports", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip

"""Where the audit's time goes: one run of `pytest harness/ --report`, in seconds and shares per bucket.

python -m tests.bench_audit [--audit-profile quick] [further pytest options]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
BUCKETS = {
    "imports": "imports and options (torch, transformers, PEFT, the subject)",
    "subject": "subject calls",
    "oracle": "oracle calls (PEFT, authors, equations)",
    "checks": "checks: cases, comparison",
    "hypothesis": "Hypothesis",
    "pytest": "pytest",
    "reports": "reports",
}
OWN = ("checks", "hypothesis", "pytest", "reports")


def measure(options: list[str]) -> tuple[dict[str, float], float, int]:
    """(seconds per bucket, wall seconds, exit code) of one serial audit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        environment = {**os.environ, "AUDIT_CLOCK": str(out / "clock.json")}
        command = [sys.executable, "-m", "pytest", "harness/", f"--report={out / 'review.md'}", "-q"]
        command += ["--audit-json", str(out / "audit.json"), *options]
        start = time.perf_counter()
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False
        ).returncode
        wall = time.perf_counter() - start
        return json.loads((out / "clock.json").read_text()), wall, code


def main(options: list[str]) -> int:
    """Run, and print the table."""
    spent, wall, code = measure(options)
    table = Table("bucket", "seconds", "share", title=f"one audit: {wall:.1f} s wall, exit {code}")
    for bucket, words in BUCKETS.items():
        seconds = spent.get(bucket, 0.0)
        table.add_row(words, f"{seconds:.1f}", f"{seconds / wall:.0%}")
    rest = wall - sum(spent.get(b, 0.0) for b in BUCKETS)
    table.add_row("interpreter start and end", f"{rest:.1f}", f"{rest / wall:.0%}")
    Console().print(table)
    own = sum(spent.get(b, 0.0) for b in OWN) / wall
    print(f"the audit's own share (all but imports, subject and oracle calls): {own:.0%}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

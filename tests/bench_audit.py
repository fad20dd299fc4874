"""Where the audit's time goes: one run of `pytest harness/ --report`, in seconds and shares per bucket.

python -m tests.bench_audit [--cpu | --remote] [--audit-profile quick] [further pytest options]

With ``--cpu``: processor time, for a machine that others use too. With ``--remote``: what a claim costs whose subject
is in a process of its own, beside the same in this process.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
BUCKETS = {
    "imports": "imports and options (torch, transformers, PEFT, the subject)",
    "subject": "subject calls",
    "oracle": "oracle calls (PEFT, authors, equations)",
    "checks": "checks: cases, comparison",
    "hypothesis": "Hypothesis",
    "pytest": "pytest, and the references' own tests",
    "reports": "reports",
}
OWN = ("checks", "hypothesis", "pytest", "reports")


def measure(options: list[str], cpu: bool) -> tuple[dict[str, float], float, int]:
    """(seconds per bucket, seconds in all, exit code) of one serial audit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        environment = {**os.environ, "AUDIT_CLOCK": str(out / "clock.json")}
        environment |= {"AUDIT_CLOCK_CPU": "1"} if cpu else {}
        clock = of_children if cpu else time.perf_counter
        command = [sys.executable, "-m", "pytest", "harness/", f"--report={out / 'review.md'}", "-q"]
        command += ["--audit-json", str(out / "audit.json"), *options]
        start = clock()
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False
        ).returncode
        spent = clock() - start
        return json.loads((out / "clock.json").read_text()), spent, code


def of_children() -> float:
    """Processor seconds of the processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_per_claim(options: list[str]) -> dict[str, float]:
    """One serial audit's seconds of processor time and waiting per claim that holds, as pytest measures its call."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.xml"
        command = [sys.executable, "-m", "pytest", "harness/", "-q", "-n", "0", f"--junitxml={record}"]
        command += ["-o", "junit_duration_report=call", *options]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        cases = ElementTree.parse(record).iter("testcase")
        return {
            f"{c.get('classname')}::{c.get('name')}": float(c.get("time", 0)) for c in cases if not len(c)
        }


def remote(options: list[str]) -> int:
    """Both ways, claim by claim; the median of the ratios. A claim that fails in one of them is no measure.

    Twice by turns, and the quicker one of each claim counts: a machine's speed drifts within minutes.
    """
    ways = [options, [*options, f"--subject-python={sys.executable}"]]
    rounds = [[seconds_per_claim(way) for way in ways] for _ in range(2)]
    here, there = (_quicker(*times) for times in zip(*rounds, strict=True))
    if here.keys() != there.keys():
        return _differ(here.keys() ^ there.keys())
    ratios = [there[name] / seconds for name, seconds in here.items() if seconds > 0]
    total = sum(there.values()) / sum(here.values())
    print(f"{len(ratios)} claims of a subject in a process of its own, beside the same in this one: ", end="")
    print(f"median {statistics.median(ratios):.2f} times, all together {total:.2f} times")
    return 0


def _quicker(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: min(seconds, second.get(name, seconds)) for name, seconds in first.items()}


def _differ(claims: Collection[str]) -> int:
    print(f"{len(claims)} claims hold in one process only, {min(claims)} for one: nothing to compare")
    return 1


def main(options: list[str]) -> int:
    """Run, and print the table."""
    if "--remote" in options:
        return remote([o for o in options if o != "--remote"])
    cpu = "--cpu" in options
    spent, whole, code = measure([o for o in options if o != "--cpu"], cpu)
    kind = "processor time" if cpu else "wall"
    table = Table("bucket", "seconds", "share", title=f"one audit: {whole:.1f} s {kind}, exit {code}")
    for bucket, words in BUCKETS.items():
        seconds = spent.get(bucket, 0.0)
        table.add_row(words, f"{seconds:.1f}", f"{seconds / whole:.0%}")
    rest = whole - sum(spent.get(b, 0.0) for b in BUCKETS)
    table.add_row("interpreter start and end", f"{rest:.1f}", f"{rest / whole:.0%}")
    Console().print(table)
    own = sum(spent.get(b, 0.0) for b in OWN) / whole
    print(f"the audit's own share (all but imports, subject and oracle calls): {own:.0%}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

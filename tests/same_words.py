"""`python -m tests.same_words record DIR` before a change that must not show, `... compare DIR` after it.

The review, `audit.json` and the exit code of eight audits: lora_lite, PEFT, the round-1 replica and five broken
subjects.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIVE = "tests.subjects.five"
AUDITS: dict[str, tuple[str, ...]] = {
    "lora_lite": ("--subject", "lora_lite"),
    "peft": ("--subject", "peft"),
    "round1": ("--subject", "tests/replicas/round1.py:Round1"),
    **{
        name.lower(): ("--subject", f"{FIVE}:{name}", "--variant", variant)
        for name, variant in (
            ("SQRT_RANK", "lora"),
            ("MINOR_COMPONENTS", "pissa"),
            ("NORM_OVER_INPUTS", "dora"),
            ("BIAS_NOT_GATED", "ia3"),
            ("REVERSED", "hra"),
        )
    },
}
# What schema 2 added to schema 1; everything else must be the same.
ADDED = {
    *("cause", "detail", "mode", "source", "remedy", "environment", "agree", "differ", "not_asked"),
    *("missing", "schema_version"),
}


def main() -> int:
    """Exit 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_words")
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="quick")
    given = parser.parse_args()
    if given.action == "record":
        given.folder.mkdir(parents=True, exist_ok=True)
        for name in AUDITS:
            audit(name, given.folder, given.profile)
        return 0
    with tempfile.TemporaryDirectory() as now:
        for name in AUDITS:
            audit(name, Path(now), given.profile)
        wrong = [line for name in AUDITS for line in differences(name, given.folder, Path(now))]
    print("\n".join(wrong) or f"{len(AUDITS)} audits: the same words")
    return int(bool(wrong))


def audit(name: str, folder: Path, profile: str) -> None:
    """One audit's three outputs in ``folder``."""
    review, document = folder / f"{name}.md", folder / f"{name}.json"
    command = [sys.executable, "-m", "pytest", "harness/", f"--report={review}", f"--audit-json={document}"]
    found = subprocess.run(
        [*command, *AUDITS[name], "--audit-profile", profile, "-n", "2", "-q"], capture_output=True
    )
    (folder / f"{name}.exit").write_text(f"{found.returncode}\n")


def differences(name: str, before: Path, after: Path) -> Iterator[str]:
    """What is not the same in an audit, a line each."""
    for suffix in ("exit", "md"):
        old, new = ((folder / f"{name}.{suffix}").read_text() for folder in (before, after))
        if old != new:
            yield f"{name}.{suffix} differs"
    old_json, new_json = (
        old_fields(json.loads((folder / f"{name}.json").read_text())) for folder in (before, after)
    )
    if old_json != new_json:
        yield f"{name}.json differs"


def old_fields(value: Any) -> Any:
    """A document without what schema 2 added; the checks by name, since their order is that of the files."""
    if isinstance(value, dict):
        kept = {k: old_fields(v) for k, v in value.items() if k not in ADDED}
        by_name = {"checks": sorted(kept["checks"], key=lambda c: c["id"])} if "docstrings" in kept else {}
        return kept | by_name
    return [old_fields(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())

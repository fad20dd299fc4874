"""Writes docs/checks.md: every check, what it asks, the wrong subjects that it finds out, and what a claim costs.

python -m tests.check_table [--audit-profile quick] [--subject lora_lite]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from harness.cases.profiles import PROFILES, Profile
from harness.engine.checks import Check, load_checks
from harness.engine.session import Session, load_references
from harness.subjects import resolve
from oracles import registry
from oracles.variants import VARIANTS
from refs.vocabulary import ASPECTS
from tests.models import test_checks as models
from tests.subjects import (  # noqa: F401  (they fill the table)
    awkward_loaders,
    broken_alone,
    broken_contexts,
    broken_rank_stabilised,
    checkpoint_loaders,
)
from tests.subjects.broken import BROKEN
from tests.subjects.broken_lives import BROKEN_LIVES
from tests.subjects.kinds import BROKEN_KINDS

PAGE = Path(__file__).parents[1] / "docs/checks.md"
SHOWN = 2  # wrong subjects by name
HEAD = """# The checks

Written by `python -m tests.check_table`; do not edit. Each check is asked once per variant, mode and reference that it
concerns: a claim. The title is what a finding is called where a claim fails. `finds out` names wrong subjects:
libraries of `tests/subjects/` (for whole models of `tests/models/test_checks.py`) with one mistake each, which the
audit's own tests demand that the check finds.

The time is the median of a claim's processor time in milliseconds, with `{subject}` as the subject, profile
`{profile}` ({examples} cases), {claims} claims in one process on a shared machine: good for comparing checks, not to
foretell a run. The first claim of a variant also pays for the preflight.
"""


def wrong_subjects() -> dict[str, list[str]]:
    """check -> the wrong subjects that it has to find out, each with its variant."""
    found: dict[str, list[str]] = {}
    rows = [(check, b.name, b.variant) for b in BROKEN for check in b.caught]
    rows += [(f"targets.{check}", subject.__name__, variant) for subject, check, variant in models.BROKEN]
    rows += [(b.claim, b.name, b.variant) for b in BROKEN_LIVES]
    rows += [(b.claim, b.name, "lora") for b in BROKEN_KINDS]
    for check, name, variant in rows:
        found.setdefault(check, []).append(f"{name} ({variant})")
    return found


def milliseconds(session: Session) -> dict[str, list[float]]:
    """check -> the processor time of each of its claims."""
    load_references()
    spent: dict[str, list[float]] = {}
    for key in session.planned():
        start = time.process_time()
        session.run(key, lambda claim: None).conclude()
        spent.setdefault(key.check, []).append(1e3 * (time.process_time() - start))
    return spent


def table(checks: Iterable[Check], wrong: Mapping[str, list[str]], spent: Mapping[str, list[float]]) -> str:
    """One aspect's checks, a line each."""
    lines = ["| check | title | asks | finds out | claims | ms |", "|---|---|---|---|--:|--:|"]
    for check in checks:
        info, times = check.info, spent.get(check.id, [])
        median = f"{statistics.median(times):.0f}" if times else ""
        cells = (
            f"`{check.id}`",
            info.title,
            info.question,
            named(wrong.get(check.id, [])),
            len(times),
            median,
        )
        lines.append(
            "| " + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"
        )
    return "\n".join(lines)


def named(subjects: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(subjects) - SHOWN} more" if len(subjects) > SHOWN else ""
    return ", ".join(subjects[:SHOWN]) + more if subjects else "none of its own yet"


def page(session: Session, spent: Mapping[str, list[float]]) -> str:
    """The whole file."""
    checks, wrong = load_checks().values(), wrong_subjects()
    parts = [
        HEAD.format(
            subject=session.subject.name,
            profile=session.profile.name,
            examples=session.profile.examples,
            claims=sum(map(len, spent.values())),
        )
    ]
    for aspect in ASPECTS:
        own = [check for check in checks if check.info.aspect == aspect]
        if own:
            parts.append(f"## {aspect}\n\n{table(own, wrong, spent)}\n")
    return "\n".join(parts)


def main() -> int:
    """Ask every claim once, and write the page."""
    top = argparse.ArgumentParser(prog="python -m tests.check_table", description=__doc__)
    top.add_argument("--audit-profile", choices=PROFILES, default="default")
    top.add_argument("--subject", default="lora_lite")
    given = top.parse_args()
    torch.set_num_threads(1)
    subject = resolve.resolve(given.subject).implementation
    variants = tuple(v for v in VARIANTS if v in subject.variants)
    name = given.audit_profile
    profile = Profile(name, PROFILES[name], 0, caps=name == "quick")
    session = Session(subject, variants, tuple(registry.ids()), profile)
    PAGE.write_text(page(session, milliseconds(session)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of docs/trust.md: every hostile subject and the sentence that it got.

python -m tests.trust.hostile_table [--remote]

With ``--remote`` each of them in a process of its own, and only those that end otherwise than here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import torch

from harness.compare import isolation
from harness.engine.session import load_references
from oracles.implementation import Implementation
from reports.model import Claim
from tests.remote.served import served
from tests.subjects.hostile import HOSTILE, Hostile
from tests.subjects.judged import QUICK, once

HEAD = "| subject | claim | outcome | sentence |\n|---|---|---|---|"
LONGEST = 150


def row(case: Hostile, claim: Claim) -> str:
    """One line of the table; a long sentence is cut."""
    sentence = (
        re.sub(r" \(at [^)]*\)", "", claim.reason or "").replace(os.getcwd(), "/checkout").replace("|", "\\|")
    )
    if len(sentence) > LONGEST:
        sentence = sentence[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"| {case.name} | {claim.check} | {claim.outcome} | {sentence} |"


def claim_of(case: Hostile, subject: Implementation) -> Claim:
    """What the audit says of it."""
    (claim,) = once(subject, ["lora"], lambda check: check.id == case.check, QUICK)
    return claim


def here() -> Iterator[str]:
    """Every row, of this process."""
    for case in HOSTILE:
        yield row(case, claim_of(case, case.make()))


def elsewhere() -> Iterator[str]:
    """The rows that are another in a process of its own, and how many there are."""
    load_references()
    there, same = served("switch.py", "Switch"), 0
    for case in HOSTILE:
        there.source("use", case.name)
        found, usual = row(case, claim_of(case, there)), row(case, claim_of(case, case.make()))
        same += found == usual
        if found != usual:
            yield found
    yield f"{same} of {len(HOSTILE)} rows are the same"


def main() -> None:
    """Print the table."""
    isolation.CLAIM_SECONDS = 5.0
    torch.set_num_threads(1)
    print(HEAD)
    for line in elsewhere() if "--remote" in sys.argv else here():
        print(line, flush=True)


if __name__ == "__main__":
    main()

"""The table of docs/trust.md: every hostile subject and the sentence that it got.

python -m tests.trust.hostile_table
"""

from __future__ import annotations

import os
import re

from harness.compare import isolation
from reports.model import Claim
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


def main() -> None:
    isolation.CLAIM_SECONDS = 5.0
    print(HEAD)
    for case in HOSTILE:
        (claim,) = once(case.make(), ["lora"], lambda check, case=case: check.id == case.check, QUICK)
        print(row(case, claim), flush=True)


if __name__ == "__main__":
    main()

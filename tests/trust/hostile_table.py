"""The table of docs/trust.md: every hostile subject and the sentence that it got.

python -m tests.trust.hostile_table
"""

from __future__ import annotations

import os

from harness import guard
from harness.registry import Check
from harness.session import claims_for
from reports.model import Claim
from tests.subjects.hostile import HOSTILE, Hostile

HEAD = "| subject | claim | outcome | sentence |\n|---|---|---|---|"
LONGEST = 150


def asked(case: Hostile) -> Claim:
    """The claim that the subject is asked: of the equations, or else of PEFT."""

    def only(check: Check) -> bool:
        return check.id == case.check

    subject = case.make()
    found = claims_for(subject, variants=["lora"], oracles=("paper",), checks=only)
    return (found or claims_for(subject, variants=["lora"], oracles=("peft",), checks=only))[0]


def row(case: Hostile, claim: Claim) -> str:
    """One line of the table; a long sentence is cut."""
    sentence = (claim.reason or "").replace(os.getcwd(), "/checkout").replace("|", "\\|")
    if len(sentence) > LONGEST:
        sentence = sentence[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"| {case.name} | {claim.check} | {claim.outcome} | {sentence} |"


def main() -> None:
    guard.CLAIM_SECONDS = 5.0
    print(HEAD)
    for case in HOSTILE:
        print(row(case, asked(case)), flush=True)


if __name__ == "__main__":
    main()

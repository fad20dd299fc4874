"""A table of broken lives: what is wrong, the claim that finds it, the sentence, and the shrunken sequence.

python -m tests.life_table
"""

from __future__ import annotations

from harness.cases.profiles import Profile
from harness.engine.session import claims_for
from reports.model import Claim
from tests.subjects.broken_lives import BROKEN_LIVES, BrokenLife

TWELVE = Profile("default", 12, 0)


def asked(broken: BrokenLife) -> Claim:
    """The claim that should find it out, asked."""
    claims = claims_for(
        broken.make(),
        variants=[broken.variant],
        oracles=("paper",),
        checks=lambda check: check.id == broken.claim,
        profile=TWELVE,
    )
    return claims[0]


def row(broken: BrokenLife, claim: Claim) -> str:
    """One line of the table."""
    steps = claim.witness.case.get("steps", "") if claim.witness else ""
    quantity = claim.witness.quantity if claim.witness else claim.reason
    says = claim.diagnosis.summary if claim.diagnosis else quantity
    return f"| {broken.what} | {broken.variant} | `{claim.check}` | {says} | `{steps}` |"


def main() -> None:
    """Print the table in markdown."""
    print("| what is wrong | variant | claim | what the finding says | shrunken sequence |")
    print("|---|---|---|---|---|")
    for broken in BROKEN_LIVES:
        print(row(broken, asked(broken)))


if __name__ == "__main__":
    main()

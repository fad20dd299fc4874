"""Many seeds of one audit in one process: is anything found that is not there, and how close does a ratio come?

python -m tests.seeds [--seeds 100] [--first 0] [--audit-profile quick] [--variant lora,...]

A line per seed, as it comes. Exit 1 where a claim of the subject did not hold under some seed: a finding that
depends on the seed is a defect, of the subject or of the audit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence

import torch

from harness.cases.profiles import PROFILES, Profile
from harness.engine import declarations
from harness.engine.described import docstrings
from harness.engine.session import Session, load_checks
from harness.subjects import resolve
from oracles import registry
from oracles.variants import VARIANTS
from reports.model import Claim

BAD = ("fail", "error", "unverified")


def session(ref: str, profile: Profile, variants: Sequence[str]) -> Session:
    """The audit of ``ref`` as its command line would have it."""
    found = resolve.resolve(ref)
    subject = found.implementation
    declared = declarations.load(found.declarations, docstrings(subject)) if found.declarations else ()
    chosen = tuple(v for v in variants if v in subject.variants)
    return Session(subject, chosen, tuple(registry.ids()), profile, declared)


def asked(audit: Session) -> Iterator[Claim]:
    """Every claim, concluded."""
    for key in audit.planned():
        yield audit.run(key, lambda claim: None).conclude()


def share(claim: Claim) -> float:
    """The largest ratio that a claim met, as a share of its threshold; a threshold of zero allows nothing."""
    return claim.ratio / claim.threshold if claim.ratio and claim.threshold else 0.0


def told(seed: int, claims: Iterable[Claim]) -> tuple[str, bool]:
    """A seed's line, and whether all held."""
    found = list(claims)
    bad, worst = [c for c in found if c.outcome in BAD], max(found, key=share)
    near = (
        f"largest ratio {share(worst):.2f} of its threshold ({worst.id}: {worst.ratio} of {worst.threshold})"
    )
    lines = [f"seed {seed}: {len(found)} claims, {len(bad)} do not hold; {near}"]
    return "\n".join([*lines, *(f"  {c.id}: {c.outcome}: {c.reason}" for c in bad)]), not bad


def main() -> int:
    """Ask under one seed after the other."""
    top = argparse.ArgumentParser(prog="python -m tests.seeds", description=__doc__)
    top.add_argument("--seeds", type=int, default=100)
    top.add_argument("--first", type=int, default=0)
    top.add_argument("--audit-profile", choices=PROFILES, default="quick")
    top.add_argument("--subject", default="lora_lite")
    top.add_argument("--variant", default=",".join(VARIANTS))
    given = top.parse_args()
    torch.set_num_threads(1)
    load_checks()
    name, held = given.audit_profile, True
    for seed in range(given.first, given.first + given.seeds):
        profile = Profile(name, PROFILES[name], seed, caps=name == "quick")
        line, all_hold = told(seed, asked(session(given.subject, profile, given.variant.split(","))))
        print(line, flush=True)
        held &= all_hold
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())

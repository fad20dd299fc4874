"""A subject's claims and what the reports make of them, in one call and without pytest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from harness.engine.described import docstrings
from harness.engine.session import claims_for, environment, load_checks
from oracles.implementation import Implementation
from oracles.variants import VARIANTS
from reports.judge.judgement import judge
from reports.model import Audit, Claim, Key, OracleInfo, Run, Subject, VariantInfo

QUICK = Profile("quick", 4, 0)
Selection = Callable[[Check], bool]


def every(check: Check) -> bool:
    """All checks."""
    return True


def once(
    subject: Implementation, variants: Sequence[str], checks: Selection, profile: Profile
) -> list[Claim]:
    """Each check against one oracle: the equations, or PEFT where the check is for PEFT alone."""

    def with_peft(check: Check) -> bool:
        return check.against is not None and "paper" not in check.against and checks(check)

    asked = {"variants": variants, "profile": profile}
    claims = claims_for(subject, oracles=("paper",), checks=checks, **asked)
    return claims + claims_for(subject, oracles=("peft",), checks=with_peft, **asked)


def audit(
    subject: Implementation,
    variants: Sequence[str],
    *,
    oracles: Sequence[str] | None = None,
    checks: Selection = every,
    profile: Profile = QUICK,
) -> Audit:
    """What the selection asks of ``subject``, judged; without ``oracles``, each check against one of them."""
    if oracles is None:
        claims = once(subject, variants, checks, profile)
    else:
        claims = claims_for(subject, variants=variants, oracles=oracles, checks=checks, profile=profile)
    oracles = oracles or ("peft", "paper")
    chosen = [v for v in VARIANTS.values() if v.id in variants]
    run = Run(
        Subject(subject.name, subject.version, "tests", docstrings=docstrings(subject)),
        tuple(OracleInfo(id_, None, "live", id_) for id_ in oracles),
        environment(),
        {"name": profile.name, "examples": profile.examples, "seed": profile.seed},
        tuple(VariantInfo(v.id, v.title, v.paper, v.equation) for v in chosen),
        {id_: check.info for id_, check in load_checks().items()},
        tuple(claims),
        planned=tuple(Key(c.check, c.variant, c.mode, c.oracle) for c in claims),
    )
    return judge(run)

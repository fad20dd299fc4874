"""The orders everything is sorted by: variants as the run has them, aspects, severities."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from refs.vocabulary import ASPECTS, SEVERITIES, Severity
from reports.model import Claim, Run

# Which aspect names a defect that shows in several: a wrong forward also has wrong step-0 gradients.
LEADING = tuple(dict.fromkeys(("shapes", "init", "forward", "scale", "step0", *ASPECTS)))


def rank(value: str, order: Collection[str]) -> int:
    """The place of ``value`` in ``order``; unknown values come last."""
    return next((place for place, one in enumerate(order) if one == value), len(order))


def worst(severities: list[Severity]) -> Severity:
    """The worst of some severities; ``none`` where there are none."""
    return min(severities, key=SEVERITIES.index, default="none")


def claim_key(run: Run) -> dict[str, tuple[int, str]]:
    """The place of each check: the run's order of checks, then the name."""
    return {check: (place, check) for place, check in enumerate(run.checks)}


def sorted_claims(run: Run) -> tuple[Claim, ...]:
    """The claims by variant, aspect, check and oracle, whichever worker answered first."""
    places = claim_key(run)
    variants, last = [v.id for v in run.variants], len(places)
    oracles = {o.id: place for place, o in reversed(list(enumerate(run.oracles)))}

    def key(claim: Claim) -> tuple[object, ...]:
        return (
            *(rank(claim.variant, variants), claim.variant, rank(claim.aspect, ASPECTS), claim.aspect),
            *places.get(claim.check, (last, claim.check)),
            *(oracles.get(claim.oracle, len(oracles)), claim.oracle, claim.id),
        )

    return tuple(sorted(run.claims, key=key))


def sorted_variants(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Each of the names once, in the given order; unknown ones last, by name."""
    return sorted(set(names), key=lambda v: (rank(v, order), v))

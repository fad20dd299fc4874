"""The orders everything is sorted by: variants, aspects, severities, grades, outcomes."""

from __future__ import annotations

from typing import get_args

from reports.model import VARIANT_ORDER, Claim, Grade, Outcome, Run, Severity, Tag

ASPECTS = (
    "shapes",
    "init",
    "scale",
    "step0",
    "forward",
    "dropout",
    "dtype",
    "training",
    "merge",
    "save_load",
    "lifecycle",
    "layers",
    "targets",
)
# Which aspect names a defect that shows in several: a wrong forward also has wrong step-0 gradients.
LEADING = ("shapes", "init", "forward", "scale", "step0", *ASPECTS[5:])
ASPECT_TITLES = {
    "shapes": "parameter shapes",
    "init": "initialisation",
    "scale": "scale factor",
    "step0": "step-0 gradient",
    "forward": "forward equation",
    "dropout": "dropout",
    "dtype": "dtypes",
    "training": "training",
    "merge": "merge and detach",
    "save_load": "save and load",
    "lifecycle": "life of an adapter",
    "layers": "kinds of layers",
    "targets": "target placement",
}
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # worst first
GRADES: tuple[Grade, ...] = get_args(Grade)  # best first
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TAGS: tuple[Tag, ...] = get_args(Tag)


def rank(value: str, order: tuple[str, ...]) -> int:
    """The place of ``value`` in ``order``; unknown values come last."""
    return order.index(value) if value in order else len(order)


def worst(severities: list[Severity]) -> Severity:
    """The worst of some severities; ``none`` where there are none."""
    return min(severities, key=SEVERITIES.index, default="none")


def claim_key(run: Run) -> dict[str, tuple[int, str]]:
    """The place of each check: the run's order of checks, then the name."""
    return {check: (place, check) for place, check in enumerate(run.checks)}


def sorted_claims(run: Run) -> tuple[Claim, ...]:
    """The claims by variant, aspect, check and oracle, whichever worker answered first."""
    places = claim_key(run)
    last = len(places)
    oracles = {o.id: place for place, o in reversed(list(enumerate(run.oracles)))}

    def key(claim: Claim) -> tuple[object, ...]:
        return (
            *(rank(claim.variant, VARIANT_ORDER), claim.variant, rank(claim.aspect, ASPECTS), claim.aspect),
            *places.get(claim.check, (last, claim.check)),
            *(oracles.get(claim.oracle, len(oracles)), claim.oracle, claim.id),
        )

    return tuple(sorted(run.claims, key=key))


def sorted_variants(names: list[str]) -> list[str]:
    """Variant names in the order of the review."""
    return sorted(set(names), key=lambda v: (rank(v, VARIANT_ORDER), v))

"""Cases at which real code changes its way: past the sizes of blocks and tiles, no multiple of them, other magnitudes.

Small cases find a wrong equation; kernels, caches and fast paths go wrong elsewhere. Every claim on numbers meets these
after its small cases, and a failure is made small again (:mod:`harness.engine.shrinking`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.cases.layer_cases import Case, Domain, allowed_dtypes
from oracles.implementation import AdapterSpec
from oracles.variants import Variant


@dataclass(frozen=True)
class Regime:
    """One such case; ``rank``: the largest one asked, where the variant allows it on these sizes."""

    in_features: int
    out_features: int
    rank: int
    alpha: float
    batch: tuple[int, ...]
    bias: bool
    spread: bool = False
    weight_scale: float = 1.0
    pruned: bool = False


# Past 16, 32 and 64 and no multiple of them; rows past 32 and at 128; x of five dimensions; alphas that are no whole
# multiple of the rank. The first is what a quick run can afford.
REGIMES = (
    Regime(67, 35, 16, 2.5, (33,), True),
    Regime(35, 131, 64, 100.0, (2, 2, 2, 16), False),
    Regime(17, 21, 10, 2.5, (3, 11), True, spread=True, weight_scale=10.0),
    Regime(19, 18, 12, 5.0, (128,), True, weight_scale=1e-4, pruned=True),
)
QUICK = 1
# What is wrong only where a matrix and its transpose have one shape shows on no other layer, and small draws may be
# without one: this one is asked in every profile.
SQUARE = Regime(6, 6, 4, 2.5, (3,), True)


def regimes(variant: Variant, domain: Domain, quick: bool) -> Iterator[Case]:
    """The regimes of ``variant`` in the mode of ``domain``; none where its cases are of another kind or size."""
    if "float32" in domain.dtypes:
        for number, regime in enumerate(REGIMES[:QUICK] if quick else REGIMES):
            yield from _case(variant, domain, regime, "float32", number)
    yield from square(variant, domain)


def square(variant: Variant, domain: Domain) -> Iterator[Case]:
    """A small square layer in one of the dtypes of ``domain``, or none, likewise."""
    dtypes = allowed_dtypes(variant, domain)
    dtype = "float32" if "float32" in dtypes else dtypes[0]
    yield from _case(variant, domain, SQUARE, dtype, len(REGIMES))


def _case(variant: Variant, domain: Domain, regime: Regime, dtype: str, seed: int) -> Iterator[Case]:
    if domain.strategy is not None or domain.tall or domain.dropout:
        return
    spec = AdapterSpec(variant.id, alpha=regime.alpha)
    if domain.mode:
        spec = variant.option(domain.mode).put(spec, True)
    rank = _largest(variant, regime, spec)
    if rank is not None:
        sizes = {k: v for k, v in vars(regime).items() if k not in ("rank", "alpha")}
        yield Case(replace(spec, rank=rank), **sizes, dtype=dtype, seed=seed)


def _largest(variant: Variant, regime: Regime, spec: AdapterSpec) -> int | None:
    """The largest rank up to the regime's that the variant takes on its sizes."""
    for rank in range(regime.rank, 0, -1):
        if variant.in_domain(regime.out_features, regime.in_features, replace(spec, rank=rank)):
            return rank
    return None

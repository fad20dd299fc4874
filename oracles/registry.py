"""Which oracles there are for a variant, and where each comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from oracles.equation import Equation
from oracles.implementation import Implementation
from oracles.peft import Peft

Kind = Literal["live", "recorded", "equation"]


@dataclass(frozen=True)
class Entry:
    """One oracle of some variants; ``make`` builds it, the rest is provenance."""

    id: str
    title: str
    kind: Kind
    variants: frozenset[str]
    make: Callable[[], Implementation]
    package: str | None = None
    version: str | None = None
    licence: str | None = None


def entries() -> list[Entry]:
    """Every oracle, in the order in which the review shows them."""
    return [
        Entry(
            "peft",
            f"PEFT {Peft.version}",
            "live",
            Peft.variants,
            Peft,
            package="peft",
            version=Peft.version,
            licence="Apache-2.0",
        ),
        Entry("paper", "equations (float64)", "equation", Equation.variants, Equation),
    ]


def ids() -> list[str]:
    """The names that `--oracle` takes."""
    return [entry.id for entry in entries()]

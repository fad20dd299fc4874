"""What the measures of a disagreement are made of: the table they stand in, an author's cases, layers and slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from oracles.authors import Author, RecordedCase, available
from oracles.authors.base import plain
from oracles.authors.family import compute, family
from oracles.implementation import Adapted
from oracles.peft import Peft

MEASURES: dict[str, Callable[[], float]] = {}


def measures(id_: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register the function that measures an entry."""

    def register(function: Callable[[], float]) -> Callable[[], float]:
        MEASURES[id_] = function
        return function

    return register


authors_of = cache(available)  # whose files are read and checked


def author_of(variant: str, oracle: str) -> Author:
    """One author's oracle; an absent one skips the test: its claims are unverified and say why."""
    author = next(a for a in authors_of(variant) if a.id == oracle)
    if author.kind == "absent":
        pytest.skip(author.reason)
    return author


def demand_live(variant: str) -> None:
    """Skip where the author's file itself is needed, in a state that is not recorded, and is not here."""
    author = author_of(variant, "author")
    if author.kind != "live":
        pytest.skip(f"not recorded, and {author.reason}")


@cache
def case(variant: str, oracle: str, name: str) -> RecordedCase:
    """One case of an author's family, computed now or recorded."""
    author = author_of(variant, oracle)
    if author.kind == "recorded":
        return next(c for c in author.cases() if c.id == name)
    return compute(author.make(), next(c for c in family(variant, oracle) if c.id == name))


def apart(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def base(out: int = 6, in_: int = 8, dtype: torch.dtype = torch.float64, bias: bool = False) -> nn.Linear:
    """A linear layer from torch's generator."""
    b = torch.randn(out, dtype=torch.float64).to(dtype) if bias else None
    return plain((torch.randn(out, in_, dtype=torch.float64) / in_**0.5).to(dtype), b)


def peft_at(at: RecordedCase, names: tuple[str, ...]) -> Tensor:
    """PEFT's output with the author's parameters written into it."""
    adapted = Peft().adapt(at.base(), at.spec)
    write(adapted, {name: at.parameters[name] for name in names})
    return adapted.module(at.x).detach()


def write(adapted: Adapted, values: dict[str, Tensor]) -> None:
    """Canonical values into their slots."""
    with torch.no_grad():
        for name, value in values.items():
            slot = adapted.slots[name]
            slot.view(slot.tensor).copy_(value)


def value(adapted: Adapted, name: str) -> Tensor:
    """A slot's canonical value."""
    slot = adapted.slots[name]
    return slot.view(slot.tensor).detach()

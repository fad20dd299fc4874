"""A large failing case made small: each of its sizes and settings as plain as the failure allows, one by one.

A life is made short, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from harness.cases.layer_cases import Case
from harness.cases.life_cases import LifeCase

ROUNDS = 3
SIDE = "side"  # of a square layer: in and out at once


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A case that still fails, and of which no single size or setting can be made plainer in the steps tried."""
    for _ in range(ROUNDS):
        before = case
        for change in _plainer(case):
            case = _first_failing(case, change, fails)
        if case == before:
            break
    return case


def fewer_steps(case: LifeCase, fails: Callable[[LifeCase], bool]) -> LifeCase:
    """The same life without the steps that it fails without: phrases of several are drawn as one."""
    for place in reversed(range(len(case.steps))):
        shorter = dataclasses.replace(case, steps=case.steps[:place] + case.steps[place + 1 :])
        case = shorter if fails(shorter) else case
    return case


Change = tuple[str, list[Any]]  # a field, and values for it from the plainest


def _plainer(case: Case) -> Iterator[Change]:
    yield "pruned", [False]
    yield "spread", [False]
    yield "weight_scale", [1.0]
    yield "batch", [(1,), (2,), (5,), *((n,) for n in _steps(_rows(case)))]
    if case.in_features == case.out_features:
        yield SIDE, _steps(case.in_features)
    yield "in_features", _steps(case.in_features)
    yield "out_features", _steps(case.out_features)
    yield "rank", _steps(case.spec.rank)
    yield "alpha", [3.0, 1.0, 8.0]
    yield "bias", [False]


def _steps(value: int) -> list[int]:
    """Smaller numbers, the smallest first: one to five, halves and quarters, and one less."""
    near = [v for base in (8, 16, 32, 64) for v in (base, base + 1) if v < value]
    return sorted({*range(1, min(6, value)), *near, value // 4, value // 2, value - 1} - {0, value})


def _rows(case: Case) -> int:
    rows = 1
    for size in case.batch:
        rows *= size
    return rows


def _first_failing(case: Case, change: Change, fails: Callable[[Case], bool]) -> Case:
    name, values = change
    for value in values:
        fields = ("in_features", "out_features") if name == SIDE else (name,)
        plainer = case.but(**dict.fromkeys(fields, value))
        if plainer != case and (plainer.has_a_value or not case.has_a_value) and fails(plainer):
            return plainer
    return case

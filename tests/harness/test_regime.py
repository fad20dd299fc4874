"""Where a failure begins, in words: a threshold, a remainder, a parity."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.cases.layer_cases import Case
from harness.engine.regime import regime
from oracles.implementation import AdapterSpec


def _at(rank: int) -> Case:
    return Case(AdapterSpec("hra", rank=rank), 3, 4, False, (2,), "float32", 0)


@pytest.mark.parametrize(
    ("rank", "fails", "words"),
    [
        (1, lambda r: r % 2 == 1, "only for a rank that is odd"),
        (2, lambda r: r % 2 == 0, "only for a rank that is even"),
        (9, lambda r: r > 8, "only for rank > 8"),
        (
            5,
            lambda r: r in (5, 7, 9, 10),
            "only for rank = 5",
        ),  # 3/r has no finite digits: no matter of parity
        (2, lambda r: True, ""),
    ],
)
def test_rank(rank: int, fails: Callable[[int], bool], words: str) -> None:
    """The ranks at which it fails decide."""
    assert regime(_at(rank), lambda case: not fails(case.spec.rank)) == words

"""Where a failure begins, in words: a threshold, a remainder, a parity."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.cases.layer_cases import Case
from harness.engine.regime import regime
from harness.engine.shrinking import shrunk
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


@pytest.mark.parametrize(
    ("side", "fails", "words"),
    [
        (2, lambda in_, out: in_ == out, "only where in = out"),
        (6, lambda in_, out: in_ == out, "only where in = out"),
        (2, lambda in_, out: in_ <= out, ""),
        (2, lambda in_, out: in_ == out == 2, ""),
        (2, lambda in_, out: True, ""),
    ],
)
def test_square(side: int, fails: Callable[[int, int], bool], words: str) -> None:
    """A larger square fails, too, and what is no square any more does not."""
    case = _at(1).but(in_features=side, out_features=side)
    assert regime(case, lambda c: not fails(c.in_features, c.out_features)) == words


@pytest.mark.parametrize(
    ("in_", "out", "fails", "words"),
    [
        (1, 2, lambda in_, out: in_ != out, "only for in ≠ out"),
        (7, 6, lambda in_, out: in_ != out, "only for in ≠ out"),
        (1, 2, lambda in_, out: in_ < out, "only for in < out"),
        (7, 4, lambda in_, out: in_ > out, "only for in > out"),
        (1, 2, lambda in_, out: True, ""),
        (7, 3, lambda in_, out: in_ > 6, "only for in > 6"),
    ],
)
def test_sides_that_differ(in_: int, out: int, fails: Callable[[int, int], bool], words: str) -> None:
    """Squares hold; which side is the longer one may make a difference."""
    case = _at(1).but(in_features=in_, out_features=out)
    assert regime(case, lambda c: not fails(c.in_features, c.out_features)) == words


@pytest.mark.parametrize(
    ("smallest", "fails", "words"),
    [
        ((1, 2), lambda in_, out: in_ < out or in_ > 6, ""),  # no threshold that in = 1 contradicts
        ((2, 2), lambda in_, out: in_ != out or in_ == 2, ""),
        ((7, 2), lambda in_, out: in_ > 6, "only for in > 6"),
    ],
)
def test_the_smallest_case_is_in_the_regime_of_a_larger(
    smallest: tuple[int, int], fails: Callable[[int, int], bool], words: str
) -> None:
    """What begins elsewhere than at the smallest case is not where the failure begins."""
    larger, small = (_at(1).but(in_features=a, out_features=b) for a, b in ((7, 6), smallest))
    assert regime(larger, lambda c: not fails(c.in_features, c.out_features), small) == words


def test_a_square_failure_is_made_small() -> None:
    """Neither of its sizes can be changed alone."""
    case = _at(1).but(in_features=6, out_features=6)
    small = shrunk(case, lambda c: c.in_features == c.out_features > 1)
    assert (small.in_features, small.out_features) == (2, 2)


def test_a_size_of_one() -> None:
    """Where one output is squeezed away."""
    case = _at(1).but(out_features=1)
    assert regime(case, lambda c: c.out_features > 1) == "only for out = 1"


def test_a_rank_above_a_side() -> None:
    """What holds where the layer is large enough."""
    case = Case(AdapterSpec("lora", rank=2), 1, 3, False, (2,), "float32", 0)
    failing = lambda c: c.spec.rank > min(c.in_features, c.out_features)  # noqa: E731
    assert regime(case, lambda c: not failing(c)) == "only for a rank above in or out"


@pytest.mark.parametrize(
    ("batch", "fails", "words"),
    [
        ((2, 3), lambda b: len(b) > 1, "only for x of more than two dimensions"),
        ((2, 3), lambda b: len(b) == 2, "only for x of 3 dimensions"),
        ((9,), lambda b: b[0] > 8, "only for a number of rows > 8"),
        ((2, 3), lambda b: True, ""),
    ],
)
def test_dimensions(batch: tuple[int, ...], fails: Callable[[tuple[int, ...]], bool], words: str) -> None:
    """As many rows in two dimensions hold."""
    case = _at(2).but(batch=batch)
    assert regime(case, lambda c: not fails(c.batch)) == words

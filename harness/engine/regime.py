"""Where a failure begins: which of a case's sizes or settings it takes, found by changing one at a time.

A shrunken case is as small as the failure allows, so a step below it holds; whether the steps above fail, too, tells a
threshold ("only for rank > 8") from a remainder ("only where in is no multiple of 16") or a single value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from harness.cases.layer_cases import Case

Holds = Callable[[Case], bool]
MULTIPLES = (64, 32, 16, 8, 4)
SIZES = {"rank": "rank", "in_features": "in", "out_features": "out"}
OTHER_DTYPES = ("bfloat16", "float16", "float64")
# Below these a size is no regime: most mistakes need two rows or a second feature to show.
ORDINARY = {"rank": 2, "in_features": 5, "out_features": 5, "rows": 5}


def regime(case: Case, asked: Holds, smallest: Case | None = None) -> str:
    """Where the failure at ``case`` begins, in words; empty where it takes nothing special.

    ``smallest``: a case on a smaller layer that fails as well; where that is not in it, it is no regime.
    """

    def holds(other: Case) -> bool:  # what has no value tells nothing
        return (other.has_a_value or not case.has_a_value) and asked(other)

    squares = {each.in_features == each.out_features for each in (case, smallest or case)}
    if squares == {True} and _square(case, holds):
        sizes = ["where in = out"]
    elif _above_a_side(case, holds):
        sizes = ["for a rank above in or out"]
    elif squares == {False} and (words := _oblong(case, holds)):
        sizes = [f"for {words}"]
    else:
        sizes = [*_sizes(case, holds, _values(smallest or case))]
    found = [*sizes, *_rows(case, holds), *_settings(case, holds)]
    return f"only {' and '.join(found)}" if found else ""


def _square(case: Case, holds: Holds) -> bool:
    """Whether a square layer fails, a larger one, too, and none whose in or out alone is larger."""
    side = case.in_features
    if side != case.out_features or holds(case.but(in_features=side + 1, out_features=side + 1)):
        return False
    return holds(case.but(in_features=side + 1)) and holds(case.but(out_features=side + 1))


def _above_a_side(case: Case, holds: Holds) -> bool:
    """Whether it takes a rank above the smaller side: a layer that is large enough for it holds."""
    rank, sides = case.spec.rank, {"in_features": case.in_features, "out_features": case.out_features}
    if rank <= min(sides.values()):
        return False
    return holds(case.but(**{name: max(side, rank + 1) for name, side in sides.items()}))


def _oblong(case: Case, holds: Holds) -> str:
    """``in ≠ out``, ``in < out`` or ``in > out``: where such layers fail, a larger one too, and squares hold."""
    sides = {"in_features": case.in_features, "out_features": case.out_features}
    squares = [case.but(**dict.fromkeys(sides, side)) for side in sides.values()]
    larger = case.but(**{name: side + 2 for name, side in sides.items()})
    if not all(map(holds, squares)) or holds(larger):
        return ""
    if not holds(case.but(in_features=case.out_features, out_features=case.in_features)):
        return "in ≠ out"
    return "in < out" if case.in_features < case.out_features else "in > out"


def _values(case: Case) -> dict[str, int]:
    return {"rank": case.spec.rank, "in_features": case.in_features, "out_features": case.out_features}


def _sizes(case: Case, holds: Holds, smallest: dict[str, int]) -> Iterator[str]:
    """The sizes that it takes; none that the smallest case has not, which fails as well."""
    for name, value in _values(case).items():
        resized = _resized(case, name, holds)
        if name == "rank" and (words := _parity(value, resized)):
            yield f"for a rank that is {words}"
        elif value == 1 and all(map(resized, (2, 3, 5))):
            yield f"for {SIZES[name]} = 1"
        elif value > ORDINARY[name] and value == smallest[name] and (words := _threshold(value, resized)):
            yield f"for {SIZES[name]} {words}"


def _parity(rank: int, holds: Callable[[int], bool]) -> str:
    """``odd`` or ``even``, where the next ranks of that kind fail and those of the other kind hold."""
    if not all(holds(rank + i) for i in (1, 3, 5)) or any(holds(rank + i) for i in (2, 4)):
        return ""
    return "odd" if rank % 2 else "even"


def _resized(case: Case, name: str, holds: Holds) -> Callable[[int], bool]:
    return lambda value: holds(case.but(**{name: value}))


def _rows(case: Case, holds: Holds) -> Iterator[str]:
    rows = math.prod(case.batch)
    if len(case.batch) > 1 and rows and holds(case.but(batch=(rows,))):
        words = "more than two" if not holds(case.but(batch=(1, *case.batch))) else str(len(case.batch) + 1)
        yield f"for x of {words} dimensions"
    elif rows > ORDINARY["rows"]:
        words = _threshold(rows, lambda v: holds(case.but(batch=(v,))))
        if words:
            yield f"for a number of rows {words}"


def _threshold(value: int, holds: Callable[[int], bool]) -> str:
    """``> 8``, ``no multiple of 16``, ``= 17``; empty where a smaller value fails as well."""
    if not _answered(holds, value - 1):
        return ""
    above = [_answered(holds, v) for v in (value + 1, 2 * value + 1)]
    for multiple in MULTIPLES:
        near = multiple * (value // multiple + 1)
        if value % multiple and _answered(holds, near) and not any(above[:1]):
            return f"that is no multiple of {multiple}"
    return f"> {value - 1}" if not any(above) else f"= {value}"


def _answered(holds: Callable[[int], bool], value: int) -> bool:
    return value >= 1 and holds(value)


def _settings(case: Case, holds: Holds) -> Iterator[str]:
    """Bias, dtype and what the spec has beside its sizes."""
    if holds(case.but(bias=not case.bias)):
        yield "with a bias" if case.bias else "without a bias"
    if case.dtype != "float32" and holds(case.but(dtype="float32")):
        others = [d for d in OTHER_DTYPES if d != case.dtype and not holds(case.but(dtype=d))]
        yield f"in {' and '.join((case.dtype, *others))}"
    plain: dict[str, tuple[Any, str]] = {}
    if case.spread:
        plain["spread"] = (False, "where the entries of x span six orders of magnitude")
    if case.weight_scale != 1.0:
        plain["weight_scale"] = (1.0, f"over a base weight of {case.weight_scale:g} times the usual size")
    if case.pruned:
        plain["pruned"] = (False, "over a base weight with columns of zeros")
    for name, (value, words) in plain.items():
        if holds(case.but(**{name: value})):
            yield words

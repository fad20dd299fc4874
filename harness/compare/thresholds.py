"""The one table of bounds; docs/tolerances.md has the calibration, the reasons, and what each can detect.

Ratios are errors in units of measured rounding noise (`harness/compare/rounding.py`). A right implementation stays
below a few; a wrong formula is at 10³ and above. ``formula`` claims are measured in units of float32 even for float64
cases: they ask for the equation, and an epsilon of 1e-12 in a norm is no other equation. ``precision`` claims ask for
digits. No number that a check compares with stands in a test module (`tests/harness/test_bounds.py`).
"""

from __future__ import annotations

from typing import NamedTuple

THRESHOLDS: dict[str, float] = {
    "formula": 30.0,  # outputs and gradients at a point
    "trajectory": 100.0,  # parameters after ten optimiser steps: errors compound
    "precision": 6.0,  # outputs at a stated dtype
    "precision gradient": 6.0,
    "double": 200.0,  # outputs in float64, where another order of the same operations is no loss
    "coefficient": 6.0,  # the least-squares coefficient of the contribution in fp32
    "coefficient in half": 1.5,  # in bf16 and fp16, where 2 % are five roundoffs, and averaging leaves hardly any
    "exact": 0.0,  # bitwise
    "drift": 2.0,  # the effective weight after many rounds of merging and unmerging, in roundoffs of both weights
    "value": 4.0,  # a deterministic initial value, in roundoffs of its own norm
}

# Statistical claims: the probability of a false alarm per test, and how far sample moments may lie.
FALSE_ALARM = 1e-7
STANDARD_ERRORS = 6.0
SUPPORT = 1e-6  # how far above its bound a uniform draw may lie, relative: one rounding of the bound
REACHED = 0.99  # of its bound, which the largest of the draws passes
UNIT_VECTORS = 1e-5  # how far from one a length, and from zero a cosine, is where vectors are orthonormal
GAUSSIAN_SIGMA = (
    1e-3,
    1.05,
)  # standard deviations of a Gaussian start: the least, and the most in units of 1/√r

# Where the noise is not measured: roundoffs of its own size that an output may be off by, before "formula" is applied.
ROUNDOFFS = {
    "another base": 100.0,  # the same function by another weight: W_res and B A cancel differently
    "checkpoint": 100.0,  # a chain of layers; PEFT factorises a PiSSA base again, in float32
    "interchange": 10.0,  # two libraries, two orders of the same sums
    "folded layer": 4.0,  # the weight is rounded when it is folded and again when it is taken out
    "fresh adapter": 8.0,  # PiSSA's factors and what they leave of the weight cancel
    "layer of a model": 10.0,  # sums of a few dozen terms, and cancellations of reflections
    "shared layer": 1000.0,  # "acts once" against "acts twice": nothing in between
}

# Facts that are read off numbers, where right and wrong lie far apart.
SCALE_FACTOR = 1e-3  # the factor on the contribution, relative: α/r against α/√r, not digits
DEAD_GRADIENT = 50.0  # a gradient below this multiple of its rounding noise is no gradient
SINGULAR = 1e5  # roundings that one rounding of the start moves the output by: a division by noise
SAME_FUNCTION = 1e-4  # outputs of order one by which an ignored option is told from one that acts
BASE_CHANGED = 1e-4  # outputs of order one by which a base that was replaced is told from one that was not
EVALUATION_GAP = 1e-5  # evaluation with p > 0 against p = 0, relative to the largest entry
SAME_UPDATE = 1e-3  # what is left of a merged update when a multiple of the right one is taken off, relative
REST = 0.5  # of the adapter's change of the weight: what stays of it and is less is a rest of unmerging
FAR_MORE = (
    16.0  # times what a round trip moves the output: then another setting at load is a cause of its own
)
CAST = 1e-2  # how far a base's tensor may be from its values, relative: it may be kept in half precision
SAME_DRAWS = 1e-4  # outputs under the same masks, relative to the largest entry
NEAR_PRINCIPAL = (
    0.5  # of what the principal part takes out of a weight; random directions take 0.38 on average
)
ALL_BUT_A_FEW = (
    1024  # roundoffs: nearer than this on every case, and yet not within rounding, is nearly right
)
HALF_DIGITS = (
    2.0**16
)  # bfloat16's roundoff in float32's: where every difference is smaller, something is rounded
MASK_ENTRY = 0.1  # how near 0 or 1/(1 − p) a kept-factor x_d / x has to be to be one
MASK_SHARE = 0.9  # of the entries, that are
OUTSIDE_SPAN = (
    1e-2  # of what dropout changes at rank 1: rounding is 1e-6 of it, what the base path drops most of it
)
MOVED_SHARE = (
    0.5  # of the entries with a gradient, that small steps move: in float32 all, in half precision hardly any
)
WHOLE_MASK = 1e-6  # how near one every kept-factor is where nothing was dropped


class Closeness(NamedTuple):
    """``|a − b| ≤ absolute + relative |b|``, entry by entry."""

    relative: float
    absolute: float


SAME_MASK = Closeness(1e-5, 1e-8)  # two outputs under one mask: the same operations twice
NOTHING_DROPPED = Closeness(1e-4, 1e-5)  # the output without dropout, perhaps by another path

"""The one table of thresholds; docs/tolerances.md has the calibration and what each can detect.

Ratios are errors in units of measured rounding noise (`harness/compare/rounding.py`). A right implementation stays
below a few; a wrong formula is at 10³ and above. ``formula`` claims are measured in units of float32 even for float64
cases: they ask for the equation, and an epsilon of 1e-12 in a norm is no other equation. ``precision`` claims ask for
digits.
"""

from __future__ import annotations

THRESHOLDS: dict[str, float] = {
    "formula": 30.0,  # outputs and gradients at a point
    "trajectory": 100.0,  # parameters after ten optimiser steps: errors compound
    "precision": 6.0,  # outputs at a stated dtype
    "precision gradient": 6.0,
    "double": 200.0,  # outputs in float64, where another order of the same operations is no loss
    "coefficient": 6.0,  # the least-squares coefficient of the contribution in fp32
    "coefficient in half": 1.5,  # in bf16 and fp16, where 2 % are five roundoffs, and averaging leaves hardly any
    "exact": 0.0,  # bitwise
    "value": 4.0,  # a deterministic initial value, in roundoffs of its own norm
}

# Statistical claims: the probability of a false alarm per test, and how far sample moments may lie.
FALSE_ALARM = 1e-7
STANDARD_ERRORS = 6.0

"""A subject with two known mistakes, so that a run has counterexamples, diagnoses and findings to repeat."""

from __future__ import annotations

from oracles.equation import Equation
from oracles.mistakes import mistaken


class Wrong(Equation):
    """The equations, but for a gate on the wrong side of the bias and reflections in the wrong order."""

    variants = frozenset({"ia3", "hra"})

    def __init__(self) -> None:
        super().__init__(mistaken("ia3.bias_not_gated", "hra.reversed").forms, "wrong")


class OnlyGates(Equation):
    """The equations of (IA)³ alone."""

    variants = frozenset({"ia3"})

"""Adapted parameters of one module (stacked experts): which pair of factors is for which, the shapes have to tell."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.vectors.unreadable import Unreadable

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StackedParameter:
    """A parameter of the base that a pair of factors is for."""

    parameter: str
    shape: Shape
    stacked: str  # linear, experts_out_in or experts_in_out
    experts: int


@dataclass(frozen=True)
class Pair:
    """The shapes of one pair of factors, their rank, and how deep its wrapper is nested."""

    level: int
    A: Shape
    B: Shape
    rank: int

    def layouts(self, shape: Shape) -> list[str]:
        """Layouts of a parameter of ``shape`` that the factors fit."""
        A, B = self.A, self.B
        E = _experts(shape)
        if len(A) != 2 or len(B) != 2 or A[0] != self.rank * E or B[1] != self.rank * E:
            return []
        if len(shape) == 2:
            return ["linear"] if shape == (B[0], A[1]) else []
        found = ["experts_out_in"] if shape[1:] == (B[0], A[1]) else []
        return [*found, "experts_in_out"] if shape[1:] == (A[1], B[0]) else found


def stacked_parameter(
    module: str, level: int, pairs: list[Pair], targets: list[str], base: BaseCheckpoint
) -> StackedParameter:
    """The parameter that one of a module's ``pairs`` is for; raises Unreadable.

    PEFT nests its wrappers of one module's parameters, and the file's names say how deep, not around which.
    """
    parameters = [
        name
        for name in base.names
        if name.rpartition(".")[0] == module and any(f".{name}".endswith(f".{t}") for t in targets)
    ]
    if len(parameters) != len(pairs):
        raise Unreadable(
            f"the adapter has {len(pairs)} pairs of factors for {module}, and the base {len(parameters)} "
            "of the parameters that it names"
        )
    shapes = [base.tensors.shape(name) for name in parameters]
    index = _assigned(pairs, shapes, module)[level]
    layouts = next(pair for pair in pairs if pair.level == level).layouts(shapes[index])
    if len(layouts) != 1:
        raise Unreadable(
            f"whether the experts of {module} are (out, in) or (in, out) their shapes do not tell"
        )
    name, shape = parameters[index].rpartition(".")[2], shapes[index]
    return StackedParameter(name, shape, layouts[0], _experts(shape))


def _experts(shape: Shape) -> int:
    return shape[0] if len(shape) == 3 else 1


def _assigned(pairs: list[Pair], shapes: list[Shape], module: str) -> dict[int, int]:
    """Level of a pair -> index of its parameter."""
    fits = [
        order
        for order in itertools.permutations(range(len(shapes)))
        if all(pair.layouts(shapes[i]) for pair, i in zip(pairs, order, strict=True))
    ]
    if len(fits) != 1:
        words = "no assignment fits" if not fits else "more than one assignment fits"
        raise Unreadable(f"which factors belong to which parameter of {module} cannot be told: {words}")
    return {pair.level: index for pair, index in zip(pairs, fits[0], strict=True)}

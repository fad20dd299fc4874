"""One case of an author's code, with what the code computes in it: made now, or read from a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from oracles.plain_linear import plain

__all__ = ["RecordedCase", "plain"]


@dataclass(frozen=True)
class RecordedCase:
    """One case with what the author's code computes in it.

    ``parameters`` are the canonical tensors at which it was computed, ``cotangent`` is dL/dy. ``expected``
    holds ``forward``, ``grad.x``, ``grad.NAME`` for every trained tensor, ``effective_weight`` (out, in),
    ``merged`` where the author merges, and ``losses`` (steps + 1,) with ``trained.NAME`` after a few steps of
    plain SGD at rate 0.01 on half the mean squared distance of y to the cotangent. ``state`` is what the
    author saves: names and shapes.
    """

    id: str
    oracle: str
    spec: AdapterSpec
    initial: bool
    weight: Tensor
    bias: Tensor | None
    x: Tensor
    cotangent: Tensor
    parameters: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    state: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def base(self) -> nn.Linear:
        """A fresh base layer of this case."""
        return plain(self.weight, self.bias)

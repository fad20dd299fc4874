"""A recording as an oracle: it answers what was recorded, at what was recorded, and refuses everything else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from oracles.authors.availability import Author
from oracles.authors.recorded_case import RecordedCase
from oracles.implementation import Adapted, AdapterSpec, Slot
from oracles.oracle import Kind, NotRecorded, Oracle
from oracles.variants import Form

__all__ = ["Absent", "NotRecorded", "Replay"]

# A subject may keep a float64 value in float32, or factorise a weight anew: that far the point is the same one.
SAME_POINT = 3e-6


class Replay(Oracle):
    """One author's recording behind the interface. Only its own :attr:`cases` can be asked."""

    kind: Kind = "author"

    def __init__(self, author: Author) -> None:
        self.name = f"{author.variant}/{author.id}"
        self.version = author.provenance.pin
        self.variants = frozenset({author.variant})
        self._author, self._code = author, author.make()

    @property
    def forms(self) -> Mapping[str, Form]:
        """Those of the code that was recorded."""
        return self._code.forms

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """That of the code that was recorded."""
        return self._code.nearest(spec)

    def offers(self, mode: str | None) -> bool:
        """Whether the code that was recorded has the mode."""
        return self._code.offers(mode)

    @cached_property
    def cases(self) -> list[RecordedCase]:
        """What was recorded, the smallest first."""
        return sorted(self._author.replay(), key=lambda case: (case.weight.numel(), case.spec.rank, case.id))

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The recorded layer over ``base``, at the recorded parameters, in the dtype of ``base``.

        Raises NotRecorded for a base or spec that is in no recording.
        """
        case = self._case(base, spec)
        layer = ReplayLayer(case, base.weight.dtype)
        return Adapted(layer, {name: Slot(tensor) for name, tensor in layer.held().items()})

    def _case(self, base: nn.Linear, spec: AdapterSpec) -> RecordedCase:
        for case in self.cases:
            if case.spec == spec and _equal(case.weight, base.weight):
                return case
        raise NotRecorded(f"{self.name}: this base and spec were not recorded")


class ReplayLayer(nn.Module):
    """Answers the recorded x, the identity and zero; gradients for the recorded cotangent."""

    def __init__(self, case: RecordedCase, dtype: torch.dtype) -> None:
        super().__init__()
        self.case = case
        for name, value in case.parameters.items():
            trained = f"grad.{name}" in case.expected
            held = value.to(torch.promote_types(value.dtype, dtype)).clone()
            self.register_parameter(f"at_{name}", nn.Parameter(held, requires_grad=trained))

    def held(self) -> dict[str, nn.Parameter]:
        """The recorded tensors by canonical name."""
        return {name: getattr(self, f"at_{name}") for name in self.case.parameters}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out). Raises NotRecorded away from the recorded point or input."""
        self._check_point()
        if _equal(x, self.case.x):
            return _Recorded.apply(self.case, x, *self._trained().values())
        weight, constant = self._affine()
        for probe in (torch.zeros(1, weight.shape[1]), torch.eye(weight.shape[1])):
            if _equal(x, probe):
                return (x.double() @ weight.mT + constant).to(x.dtype)
        raise NotRecorded(f"{self.case.id}: this input was not recorded")

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: tensor for name, tensor in self.held().items() if tensor.requires_grad}

    def _check_point(self) -> None:
        for name, tensor in self.held().items():
            wanted = self.case.parameters[name].double()
            error = torch.linalg.vector_norm(tensor.detach().double() - wanted)
            if not error <= SAME_POINT * torch.linalg.vector_norm(wanted):
                raise NotRecorded(f"{self.case.id}: recorded at another {name}")

    def _affine(self) -> tuple[Tensor, Tensor]:
        """(W' (out, in), b' (out,)) in float64; b' is what the recorded output has beyond x W'^T."""
        weight = self.case.expected["effective_weight"].double()
        if self.case.bias is None:
            return weight, torch.zeros(weight.shape[0], dtype=torch.float64)
        beyond = self.case.expected["forward"].double() - self.case.x.double() @ weight.mT
        return weight, beyond.reshape(-1, weight.shape[0]).mean(0)


class _Recorded(torch.autograd.Function):
    """The recorded output, and the recorded gradients of x and of every trained tensor."""

    @staticmethod
    def forward(ctx: Any, case: RecordedCase, x: Tensor, *trained: Tensor) -> Tensor:
        ctx.case, ctx.dtypes = case, [tensor.dtype for tensor in (x, *trained)]
        return case.expected["forward"].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        case, expected = ctx.case, ctx.case.expected
        if not _equal(grads[0], case.cotangent):
            raise NotRecorded(f"{case.id}: recorded for another cotangent")
        names = [name for name in case.parameters if f"grad.{name}" in expected]
        found = [expected["grad.x"], *(expected[f"grad.{name}"] for name in names)]
        return (None, *(grad.to(dtype) for grad, dtype in zip(found, ctx.dtypes, strict=True)))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().double(), b.detach().double())


class Absent(Oracle):
    """An oracle that cannot be asked at all: every claim against it stays unverified, with the reason."""

    kind: Kind = "author"

    def __init__(self, author: Author) -> None:
        self.name, self.version = f"{author.variant}/{author.id}", author.provenance.pin
        self.variants = frozenset({author.variant})
        self.reason = author.reason

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Raises NotRecorded, always."""
        raise NotRecorded(f"{self.name} is absent: {self.reason}")

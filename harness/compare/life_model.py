"""What an adapted layer computes, whatever was done to it: a model of it in float64, from the equations alone.

A layer has a weight W (out, in), a bias b (out,) or None, and adapters by name. Which of them are active is all that
its output depends on: merged or not, trained, saved and loaded, it computes the same function. How several act
together is in the variants' records.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.cases.life_cases import LifeCase, Step
from harness.compare.outcome import NoSlot
from oracles.implementation import AdapterSpec
from oracles.variants import VARIANTS, paper
from oracles.variants.record import Compose
from oracles.variants.shared_parts import adding

Weights = tuple[Tensor, Tensor | None]  # W' (out, in) and b' (out,)


@dataclass(frozen=True)
class Held:
    """One adapter: its spec and the float64 values of its canonical tensors."""

    spec: AdapterSpec
    values: Mapping[str, Tensor]


Composition = Callable[[Weights, Sequence[Held]], Weights]


def apply(weights: Weights, x: Tensor) -> Tensor:
    """x (..., in) -> (..., out)."""
    return paper.linear(x, *weights)


def folding(compose: Compose) -> Composition:
    """What several adapters compute together as the weight and bias of one layer: asked at the identity and at zero."""

    def composed(base: Weights, active: Sequence[Held]) -> Weights:
        W, b = base
        probe = torch.cat([torch.eye(W.shape[1], dtype=W.dtype), torch.zeros(1, W.shape[1], dtype=W.dtype)])
        y = compose([(held.values, held.spec) for held in active], W, b, probe)
        return (y[:-1] - y[-1]).mT, None if b is None else y[-1]

    return composed


@functools.cache
@dataclass(frozen=True)
class State:
    """One right reading: which adapters are active, in which order, and how several act together."""

    active: tuple[str, ...]
    composed: Composition


class Lived(Protocol):
    """What the model knows of a layer at a point of its life."""

    case: LifeCase
    held: dict[str, Held]  # every adapter that is there, by name
    gone: dict[str, Held]
    left: dict[str, dict[str, Tensor]]
    folded: tuple[str, ...]
    taken: list[Step]  # the steps so far
    exported: bool  # whether merge() has given a plain layer
    merged: bool
    unsettled: bool

    @property
    def base(self) -> Weights: ...


def compositions(variant: str) -> tuple[Composition, ...]:
    """How several active adapters act together, as the references do; where that can be read in two ways, both."""
    record = VARIANTS[variant]
    return tuple(folding(compose) for compose in (record.compose_adapters, *record.also_composes))


def added(base: Weights, active: Sequence[Held]) -> Weights:
    """Each adds what it changes of the base: W + Σ (W_i − W)."""
    return folding(adding(VARIANTS[active[0].spec.variant].form))(base, active)


def chained(base: Weights, active: Sequence[Held]) -> Weights:
    """Each acts on the weight that the one before it left."""
    for held in active:
        base = folding(VARIANTS[held.spec.variant].compose_adapters)(base, [held])
    return base


def completed(values: Mapping[str, Tensor], W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    """``values`` with every canonical tensor; what is not among them and is determined by W (out, in), from W.

    Raises NoSlot where a tensor is neither.
    """
    found = dict(values)
    for tensor in VARIANTS[spec.variant].tensors:
        if tensor.name in found:
            continue
        if tensor.exact is None or tensor.role == "parameter":
            raise NoSlot(f"the subject has no slot {tensor.name!r} of the canonical shape", tensor.name)
        found[tensor.name] = tensor.exact(W, spec)
    return found


def left_by(W: Tensor, start: Mapping[str, Tensor], spec: AdapterSpec) -> dict[str, Tensor]:
    """Of a method that takes a part out of the base weight: what is left of W (out, in), by the tensor's name."""
    record = VARIANTS[spec.variant]
    if record.base is None or record.factorised is None or not set(record.factorised.names) <= start.keys():
        return {}
    return {record.base.name: record.factorised.residual(W, start, spec)}

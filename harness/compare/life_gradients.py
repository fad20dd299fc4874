"""The gradients of several adapters' common output, by their tensors, in float64 from the equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.compare import rounding
from harness.compare.life_model import Held, apply

if TYPE_CHECKING:
    from harness.compare.life import Life, State

Gradients = dict[tuple[str, str], Tensor]  # (adapter, tensor) -> gradient
PERTURBATIONS = 3


def gradients_at(
    life: Life, state: State, held: Mapping[str, Held]
) -> tuple[Gradients, dict[tuple[str, str], float]]:
    """Of every tensor that is trained of every active adapter: the gradient of <G, y>, and its rounding noise."""
    exact, generator = _gradients(life, state, held), life.case.generator(6)
    near = [_gradients(life, state, held, _unit(life), generator) for _ in range(PERTURBATIONS)]
    noise = {
        key: (sum(float((n[key] - g).square().sum()) for n in near) / PERTURBATIONS) ** 0.5
        + _floor(life, g, held[key[0]].values[key[1]])
        for key, g in exact.items()
    }
    return exact, noise


def _unit(life: Life) -> float:
    return rounding.roundoff(rounding.coarser(life.case.torch_dtype))


def _floor(life: Life, gradient: Tensor, leaf: Tensor) -> float:
    operands = life.case.cotangent.double().norm() * life.case.x.double().norm() * life.base[0].norm()
    return _unit(life) * float(gradient.norm() + operands / leaf.norm().clamp(min=1))


def _gradients(
    life: Life,
    state: State,
    held: Mapping[str, Held],
    unit: float = 0.0,
    generator: torch.Generator | None = None,
) -> Gradients:
    def shaken(t: Tensor) -> Tensor:
        return (
            t * (1 + unit * torch.randn(t.shape, generator=generator, dtype=t.dtype)) if unit else t.clone()
        )

    trained = {t.name for t in life.case.variant.tensors if t.role == "parameter"}
    leaves = {
        (name, n): shaken(v).requires_grad_(n in trained)
        for name in state.active
        for n, v in held[name].values.items()
    }
    active = [
        Held(held[name].spec, {n: leaf for (own, n), leaf in leaves.items() if own == name})
        for name in state.active
    ]
    W, b = life.base
    y = apply(
        state.composed((shaken(W), None if b is None else shaken(b)), active), shaken(life.case.x.double())
    )
    wanted = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(
        y, list(wanted.values()), shaken(life.case.cotangent.double()), allow_unused=True
    )
    return {
        key: torch.zeros_like(leaf) if g is None else g
        for (key, leaf), g in zip(wanted.items(), found, strict=True)
    }

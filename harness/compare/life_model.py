"""What an adapted layer computes, whatever was done to it: a model of it in float64, from the equations alone.

A layer has a weight W (out, in), a bias b (out,) or None, and adapters by name. Which of them are active is all that
its output depends on: merged or not, trained, saved and loaded, it computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles import paper
from oracles.implementation import AdapterSpec

Weights = tuple[Tensor, Tensor | None]  # W' (out, in) and b' (out,)


@dataclass(frozen=True)
class Held:
    """One adapter: its spec and the float64 values of its canonical tensors."""

    spec: AdapterSpec
    values: Mapping[str, Tensor]


def folded(base: Weights, held: Held) -> Weights:
    """(W', b') with one adapter folded into a layer that had none."""
    W, b = base
    W, bias = paper.effective(paper.FORWARD[held.spec.variant], W, b, held.values, held.spec)
    return W, None if b is None else bias


def added(base: Weights, active: Sequence[Held]) -> Weights:
    """Each adds what it changes of the base: W + Σ (W_i − W), and b likewise."""
    W, b = base
    alone = [folded(base, held) for held in active]
    return W + sum(w - W for w, _ in alone), None if b is None else b + sum(c - b for _, c in alone)  # type: ignore


def chained(base: Weights, active: Sequence[Held]) -> Weights:
    """Each is folded into what the one before it left: the gates' product, W H_a H_b for the chain [a, b]."""
    for held in active:
        base = folded(base, held)
    return base


def running(base: Weights, active: Sequence[Held]) -> Weights:
    """DoRA as PEFT folds several: each row of what there is plus s B A, times m over its norm in W + s B A."""
    W, b = base
    there = W
    for held in active:
        update = paper.scale(held.spec) * (held.values["B"] @ held.values["A"])
        norm = torch.linalg.vector_norm(W + update, dim=1).detach()
        there = (held.values["m"] / norm)[:, None] * (there + update)
    return there, b


Composition = Callable[[Weights, Sequence[Held]], Weights]
# How several active adapters act together, as the references do; where they can be read in two ways, both.
COMPOSITIONS: dict[str, tuple[Composition, ...]] = {
    "lora": (added,),
    "pissa": (added,),
    "dora": (running, added),
    "ia3": (chained,),
    "hra": (chained,),
    "delora": (added,),
}


def apply(weights: Weights, x: Tensor) -> Tensor:
    """x (..., in) -> (..., out)."""
    return paper.linear(x, *weights)


def residual(W: Tensor, start: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    """PiSSA Eq. (4): what its factors at the start leave of the base weight (out, in)."""
    return W - paper.scale(spec) * (start["B"] @ start["A"])

"""What several records share: the factors A and B, laws of values far from the start, what several adapters compute."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants.paper import linear, scale
from oracles.variants.record import Canonical, Form, Option, Parameters, Uniform

Active = Sequence[tuple[Parameters, AdapterSpec]]


def normal(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=g, dtype=torch.float64)


def signed(low: float, width: float) -> Callable[..., Tensor]:
    """Values of either sign, of a size between ``low`` and ``low + width``."""

    def draw(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
        sign = torch.randint(0, 2, shape, generator=g, dtype=torch.float64) * 2 - 1
        return sign * (torch.rand(shape, generator=g, dtype=torch.float64) * width + low)

    return draw


def _factor(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    # s·BA has entries of order one whatever α and r: a contribution neither lost in the base nor drowning it.
    return normal(shape, spec, g) * (abs(scale(spec)) * math.sqrt(spec.rank)) ** -0.5


def _zeros_like_b(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.zeros(W.shape[0], spec.rank, dtype=W.dtype)


# kaiming_uniform_(a=√5) on (r, in)
KAIMING = Uniform(lambda out, in_, spec: 1 / math.sqrt(in_))
A = Canonical("A", lambda out, in_, spec: (spec.rank, in_), uniform=KAIMING, far=_factor, factor=True)
GAUSSIAN_A = dataclasses.replace(
    A, gaussian='the LoRA paper (§4.1, a random Gaussian) and PEFT\'s `init_lora_weights="gaussian"`'
)
B = Canonical("B", lambda out, in_, spec: (out, spec.rank), exact=_zeros_like_b, far=_factor, factor=True)
# Known to the equations and to PEFT; cases do not draw it yet.
RSLORA = Option("rslora", False)


def base_bias(b: Tensor | None, *_: Any) -> Tensor | None:
    """The base layer's bias as it is."""
    return b


def no_bias(b: Tensor | None, *_: Any) -> Tensor | None:
    """The base layer's bias lost."""
    return None


def nothing_of_its_own(p: Parameters, s: float) -> float:
    """What the adapter adds to its product beside the method's tensors: nothing."""
    return 0.0


def same(t: Tensor, *_: Any) -> Tensor:
    """``t``."""
    return t


def adding(form: Form) -> Callable[[Active, Tensor, Tensor | None, Tensor], Tensor]:
    """Several adapters that each add to the base's output what it changes of it alone: (active, W, b, x) -> y."""

    def compose(active: Active, W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
        base = linear(x, W, b)
        return base + sum(form.forward(x, W, b, p, spec, x) - base for p, spec in active)

    return compose

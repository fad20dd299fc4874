"""What the papers' equations share. Torch layout: x (..., in), W (out, in), b (out,) or None, ``y = x Wᵀ + b``.

The equations themselves stand in `oracles/variants/`, a method a file; r = rank throughout. Where a paper writes row
vectors or columns as features, the docstring there says how its symbols map. They are the yardstick: every line is
kept readable beside the paper, however slow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants.record import Forward, Parameters

__all__ = ["Forward", "Parameters", "effective", "linear", "scale"]


def linear(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """The base layer, ``x Wᵀ + b``."""
    y = x @ W.mT
    return y if b is None else y + b


def scale(spec: AdapterSpec) -> float:
    """``α / r`` (LoRA §4.1, below Eq. (3)); with rsLoRA ``α / √r`` (arXiv 2312.03732, Theorem 3.2)."""
    return spec.alpha / (math.sqrt(spec.rank) if spec.rslora else spec.rank)


def effective(
    forward: Forward, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec
) -> tuple[Tensor, Tensor]:
    """``(W', b')`` of the adapted layer as a plain linear one: probe with the identity and with zero."""
    probe = torch.eye(W.shape[1], dtype=W.dtype)
    zero = torch.zeros(1, W.shape[1], dtype=W.dtype)
    bias = forward(zero, W, b, p, spec, zero)[0]
    return (forward(probe, W, b, p, spec, probe) - bias).mT, bias

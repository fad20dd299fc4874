"""ΔW = s B A in the layout of every kind of weight: what LoRA and the methods that are made from it have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.vectors.meaning import AdaptedModule, Updates
from oracles.vectors.update import LowRank


def low_rank(a: AdaptedModule, scale: float) -> LowRank:
    """``ΔW = s B A`` in the layout of the layer's weight; A (r, in), B (out, r)."""
    A, B = a.factors["A"].double(), a.factors["B"].double()
    if a.kind in ("conv1d", "embedding"):
        return LowRank(scale * A.mT, B.mT)
    if a.kind == "conv2d":
        return LowRank(scale * B.flatten(1), A.flatten(1))
    if a.kind.startswith("experts"):
        return stacked(a, scale, *split_experts(A, B, a.experts))
    return LowRank(scale * B, A)


def split_experts(A: Tensor, B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """A (E r, in) as (E, r, in), expert by expert; B (out, r E) as (E, out, r), the expert counted fastest."""
    return A.reshape(experts, -1, A.shape[1]), B.reshape(B.shape[0], -1, experts).permute(2, 0, 1)


def stacked(a: AdaptedModule, scale: float, A: Tensor, B: Tensor) -> LowRank:
    """The update of a stack of experts from A (E, r, in) and B (E, out, r)."""
    if a.kind == "experts_in_out":
        return LowRank(scale * A.mT.flatten(0, 1), B.mT, experts_view=True)
    return LowRank(scale * B.flatten(0, 1), A, experts_view=True)


def bias_update(a: AdaptedModule, scale: float) -> Updates:
    """``lora_bias``: the second matrix has a bias, which is scaled with it."""
    if "bias" not in a.factors:
        return {}
    return {"bias": LowRank(scale * a.factors["bias"].double()[:, None], torch.ones(1, 1))}

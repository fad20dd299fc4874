"""Wrong readings of a pair of factors: another scale, another layout, parts and experts in another order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from oracles.vectors.meaning import AdaptedModule, Reading
from oracles.vectors.two_factors import bias_update, low_rank, split_experts, stacked
from oracles.vectors.update import LowRank, Magnitude, Residual, Transposed, Unchanged, Update


def scales(a: AdaptedModule) -> Iterator[tuple[str, str, float]]:
    """Id, words and value of the scales that a consumer may take."""
    root, default = math.sqrt(a.rank), math.sqrt(a.default_rank or a.rank)
    yield "scale.over_rank", "α/r", a.alpha / a.rank
    yield "scale.over_root_rank", "α/√r", a.alpha / root
    yield "scale.alpha", "α", a.alpha
    yield "scale.one", "1", 1.0
    yield "scale.root_alpha_over_rank", "√(α/r)", math.sqrt(a.alpha / a.rank)
    over = (lambda n: math.sqrt(n)) if a.rslora else float
    bottom = "√r" if a.rslora else "r"
    if a.default_alpha and a.default_alpha != a.alpha:
        yield "pattern.alpha", f"α₀/{bottom} (alpha_pattern ignored)", a.default_alpha / over(a.rank)
    if a.default_rank and a.default_rank != a.rank:
        yield "pattern.rank", f"α/{bottom}₀ (rank_pattern ignored)", a.alpha / over(a.default_rank)
        if a.default_alpha and a.default_alpha != a.alpha:
            both = a.default_alpha / (default if a.rslora else a.default_rank)
            yield "pattern.both", f"α₀/{bottom}₀ (both patterns ignored)", both


def scaled(a: AdaptedModule) -> Iterator[Reading]:
    """The update with every scale that it might be given."""
    said = "α/√r" if a.rslora else "α/r"
    for identity, words, value in scales(a):
        if identity == ("scale.over_root_rank" if a.rslora else "scale.over_rank"):
            continue
        weight = _instead(a, low_rank(a, value))
        updates = {a.named(n): u for n, u in ({a.parameter: weight} | bias_update(a, value)).items()}
        yield Reading(identity, f"the update is {words} where the file says {said}", updates)


def _instead(a: AdaptedModule, low: LowRank) -> Update:
    """What is done to the weight, with another product of factors in it."""
    right = a.update
    if isinstance(right, Residual):
        return Residual(low.left, low.right, principal=a.rank)
    if isinstance(right, Magnitude):
        return Magnitude(low, right.magnitude, right.by_columns)
    return low


def transposed(a: AdaptedModule) -> Iterator[Reading]:
    """ΔWᵀ."""
    yield a.read_as("layout.transposed", "the update is transposed", Transposed(low_rank(a, a.scale)))


def layouts(a: AdaptedModule) -> Iterator[Reading]:
    """Kernels, fused projections and stacked experts in another order."""
    if a.kind == "conv2d" and a.factors["A"].shape[2:] != (1, 1):
        A = a.factors["A"].double().permute(0, 2, 3, 1)
        other = _instead(a, LowRank(low_rank(a, a.scale).left, A.flatten(1)))
        yield a.read_as("layout.channels_last", "the kernel is read with the channels last", other)
    if a.parts:
        yield from _fused(a)
    if a.kind.startswith("experts") and a.experts > 1:
        yield from _experts(a)


def _fused(a: AdaptedModule) -> Iterator[Reading]:
    low = low_rank(a, a.scale)
    blocks = list(low.left.split(list(a.parts)))
    rows = torch.arange(low.left.shape[0])
    mixed = torch.cat([rows[i :: len(blocks)] for i in range(len(blocks))])
    for identity, sentence, left in (
        (
            "fused.first_only",
            "only the first part is adapted",
            torch.cat([blocks[0], *(torch.zeros_like(b) for b in blocks[1:])]),
        ),
        ("fused.order", "the parts are in another order", torch.cat([*blocks[1:], blocks[0]])),
        ("fused.interleaved", "the parts are read as interleaved", low.left[mixed]),
    ):
        yield a.read_as(identity, sentence, _instead(a, LowRank(left, low.right)))


def _experts(a: AdaptedModule) -> Iterator[Reading]:
    A, B, E = a.factors["A"].double(), a.factors["B"].double(), a.experts
    right_A, right_B = split_experts(A, B, E)
    block_B = B.reshape(B.shape[0], E, -1).permute(1, 0, 2)
    fast_A = A.reshape(-1, E, A.shape[1]).permute(1, 0, 2)
    for identity, sentence, first, second in (
        ("experts.B_blocks", "B is read as one block of columns per expert", right_A, block_B),
        ("experts.A_fast", "A is read with the expert counted fastest", fast_A, right_B),
        ("experts.reversed", "the experts are in the opposite order", right_A.flip(0), right_B.flip(0)),
        ("experts.first", "every expert gets the first one's update", *_first(right_A, right_B)),
    ):
        yield a.read_as(identity, sentence, stacked(a, a.scale, first, second))


def _first(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A[:1].expand_as(A), B[:1].expand_as(B)


def biases(a: AdaptedModule) -> Iterator[Reading]:
    """The second matrix's bias, lost or without its scale."""
    if "bias" in a.factors:
        yield a.read_as("bias.left_out", "the bias of the second matrix is left out", Unchanged(), "bias")
        plain = bias_update(a, 1.0)["bias"]
        yield a.read_as("bias.unscaled", "the bias of the second matrix is not scaled", plain, "bias")

"""What the tensors of one adapted module mean: the papers' equations on PEFT's tensors, nothing else.

Kinds of layer and the layout of their weight: linear (out, in), conv1d (in, out), embedding (number, dim), conv2d
(out, in, height, width), experts_out_in (E, out, in) and experts_in_out (E, in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oracles.vectors.update import Gate, LowRank, Magnitude, Reflect, Replace, Residual, Update

CLAMP = 1e-4  # PEFT's guard on the two norms of DeLoRA; the paper has none


@dataclass(frozen=True)
class AdaptedModule:
    """One module's part of an adapter file.

    ``factors`` in PEFT's layout: lora, dora, pissa: A (r, in), B (out, r), bias (out,), dora's m; ia3: l; hra: U;
    delora: A, B, lambda (1,), w_norm (in,); vera: A (r, in), B (out, r) already cut to the layer, b (out,), d (r,).
    """

    module: str
    method: str
    kind: str
    factors: Mapping[str, Tensor]
    rank: int = 0
    alpha: float = 0.0
    rslora: bool = False
    default_rank: int = 0
    default_alpha: float = 0.0
    has_bias: bool = False
    feedforward: bool = False
    gram_schmidt: bool = False
    parameter: str = "weight"
    experts: int = 1
    parts: tuple[int, ...] = ()  # the rows of a fused projection
    replaced: Mapping[str, Tensor] = field(default_factory=dict)  # tensors that the file holds whole

    @property
    def scale(self) -> float:
        """``α / r`` (LoRA §4.1), or ``α / √r`` (rsLoRA Eq. (5))."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def named(self, tensor: str) -> str:
        """The name of one of the module's tensors in the base."""
        return f"{self.module}.{tensor}" if self.module else tensor

    def updates(self) -> dict[str, Update]:
        """Name of a tensor of the base -> what is done to it."""
        found = UPDATES[self.method](self)
        whole = {name: Replace(value) for name, value in self.replaced.items()}
        return {self.named(name): update for name, update in {**found, **whole}.items()}


def low_rank(a: AdaptedModule, scale: float) -> LowRank:
    """``ΔW = s B A`` in the layout of the layer's weight."""
    A, B = a.factors["A"].double(), a.factors["B"].double()
    if a.kind in ("conv1d", "embedding"):
        return LowRank(scale * A.mT, B.mT)
    if a.kind == "conv2d":
        return LowRank(scale * B.flatten(1), A.flatten(1))
    if a.kind.startswith("experts"):
        return _experts(a, scale, *split_experts(A, B, a.experts))
    return LowRank(scale * B, A)


def split_experts(A: Tensor, B: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """A (E r, in) as (E, r, in), expert by expert; B (out, r E) as (E, out, r), the expert counted fastest."""
    return A.reshape(experts, -1, A.shape[1]), B.reshape(B.shape[0], -1, experts).permute(2, 0, 1)


def _experts(a: AdaptedModule, scale: float, A: Tensor, B: Tensor) -> LowRank:
    if a.kind == "experts_in_out":
        return LowRank(scale * A.mT.flatten(0, 1), B.mT, experts_view=True)
    return LowRank(scale * B.flatten(0, 1), A, experts_view=True)


def _lora(a: AdaptedModule) -> dict[str, Update]:
    found: dict[str, Update] = {a.parameter: low_rank(a, a.scale)}
    return found | bias_update(a, a.scale)


def bias_update(a: AdaptedModule, scale: float) -> dict[str, Update]:
    """``lora_bias``: the second matrix has a bias, which is scaled with it."""
    if "bias" not in a.factors:
        return {}
    return {"bias": LowRank(scale * a.factors["bias"].double()[:, None], torch.ones(1, 1))}


def _dora(a: AdaptedModule) -> dict[str, Update]:
    low = low_rank(a, a.scale)
    return {a.parameter: Magnitude(low, a.factors["m"], by_columns=a.kind in ("conv1d", "embedding"))}


def _pissa(a: AdaptedModule) -> dict[str, Update]:
    low = low_rank(a, a.scale)
    return {a.parameter: Residual(low.left, low.right, principal=a.rank), **bias_update(a, a.scale)}


def _ia3(a: AdaptedModule) -> dict[str, Update]:
    gate = a.factors["l"].flatten()
    columns = a.feedforward != (a.kind == "conv1d")
    found: dict[str, Update] = {a.parameter: Gate(gate, by_columns=columns)}
    if a.has_bias and not a.feedforward:
        found["bias"] = Gate(gate)
    return found


def _hra(a: AdaptedModule) -> dict[str, Update]:
    return {a.parameter: Reflect(a.factors["U"], a.gram_schmidt)}


def _delora(a: AdaptedModule) -> dict[str, Update]:
    return {a.parameter: delora_update(a)}


def delora_update(
    a: AdaptedModule, *, divide: bool = True, norms: str = "both", channels: bool = True, bound: float = 0.0
) -> LowRank:
    """DeLoRA Eq. (8) and (15): ``ΔW = (λ/r) B Ξ A ‖W‖``, ``Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)``."""
    A, B = a.factors["A"].double(), a.factors["B"].double()
    strength = bound or float(a.factors["lambda"])
    a_norms = torch.linalg.vector_norm(A, dim=1).clamp(min=CLAMP)
    b_norms = torch.linalg.vector_norm(B, dim=0).clamp(min=CLAMP)
    if norms == "frobenius":
        a_norms, b_norms = torch.linalg.matrix_norm(A), torch.linalg.matrix_norm(B)
    if norms == "none":
        a_norms = b_norms = torch.ones(())
    xi = strength / (a.rank if divide else 1) / (a_norms * b_norms)
    return LowRank(B * xi, A * a.factors["w_norm"].double() if channels else A)


def _vera(a: AdaptedModule) -> dict[str, Update]:
    return {a.parameter: vera_update(a)}


def vera_update(a: AdaptedModule, *, without: str = "", A: str = "A", B: str = "B") -> LowRank:
    """VeRA Eq. (2): ``ΔW = Λ_b B Λ_d A``."""
    b, d = a.factors["b"].double(), a.factors["d"].double()
    left = a.factors[B].double() * (1 if without == "b" else b[:, None])
    right = a.factors[A].double() * (1 if without == "d" else d[:, None])
    return LowRank(right.mT, left.mT) if a.kind == "conv1d" else LowRank(left, right)


def _replace(a: AdaptedModule) -> dict[str, Update]:
    return {}


UPDATES: dict[str, Callable[[AdaptedModule], dict[str, Update]]] = {
    "lora": _lora,
    "dora": _dora,
    "pissa": _pissa,
    "ia3": _ia3,
    "hra": _hra,
    "delora": _delora,
    "vera": _vera,
    "replace": _replace,
}

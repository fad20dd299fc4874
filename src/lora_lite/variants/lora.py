"""LoRA: y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from ..config import LoRAConfig
from ..variant import Variant, add, register

__all__ = ["LoRA"]


@register
class LoRA(Variant):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685v2, Eq. (3) and the α/r sentence after it, §4.1).

    Equation
        y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ,   s = α / r;   merged: W + s B A, bias unchanged.
    Shapes
        A (r, in), B (out, r), in fp32 (fp64 on an fp64 base). W (out, in) and b (out,) are frozen. Any rank,
        above min(in, out) too.
    Initialisation
        A ~ U(-1/√in, 1/√in), which is what kaiming-uniform with a = √5 amounts to; B = 0: step 0 is the base.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
        https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py

    Deviations
        - From the paper: A uniform, not Gaussian, and dropout; both as in PEFT and in the authors' code.
        - From PEFT: on a half-precision base A is drawn in fp32 and not rounded through the base's dtype
          first, so its support bound holds exactly. No rsLoRA, no trainable bias.
        - From the authors' code: `eval()` does not merge; merging is an explicit call, so the base weight
          collects no rounding errors.
    """

    Config = LoRAConfig

    def build(self) -> None:
        """A (r, in) and B (out, r)."""
        self.A = self.parameter(self.config.rank, self.in_features)
        self.B = self.parameter(self.out_features, self.config.rank)

    @property
    def scale(self) -> float:
        """s = α / r."""
        return float(self.config.alpha / self.config.rank)

    def init(self, layer: nn.Module) -> None:
        """A uniform in ±1/√in, B zero."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)

    def dropped(self, x: Tensor) -> Tensor:
        """drop(x) in the adapter's dtype; random numbers are drawn only where dropout is active."""
        x = x.to(self.A.dtype)
        active = self.training and self.config.dropout > 0
        return dropout(x, self.config.dropout) if active else x

    def low_rank(self, x: Tensor) -> Tensor:
        """s · x Aᵀ Bᵀ (..., out); the (..., r) product is the cheapest place for s."""
        return linear(linear(x, self.A) * self.scale, self.B)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y + s · drop(x) Aᵀ Bᵀ."""
        return add(y, self.low_rank(self.dropped(x)))

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        return torch.addmm(W, self.B, self.A, alpha=self.scale), b

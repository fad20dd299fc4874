"""LoRA: y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LoRAConfig
from ..variant import Variant, register

__all__ = ["LoRA", "add_linear"]


def add_linear(y: Tensor, h: Tensor, B: Tensor) -> Tensor:
    """y + h Bᵀ in y's dtype, for y (..., out), h (..., r), B (out, r): the sum before the rounding."""
    return (y + F.linear(h, B)).to(y.dtype)


@register
class LoRA(Variant):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685v2, Eq. (3) and the α/r sentence after it, §4.1).

    Equation
        y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ,   s = α / r;   merged: W + s B A, bias unchanged.
    Shapes
        A (r, in), B (out, r), in fp32 (fp64 on an fp64 base). W (out, in) and b (out,) are frozen.
    Initialisation
        A ~ U(-1/√in, 1/√in), which is what kaiming-uniform with a = √5 amounts to; B = 0: step 0 is the base.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
        https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py

    Deviations
        - From the paper: A uniform, not Gaussian, and dropout; both as in PEFT and in the authors' code.
        - From PEFT: on a half-precision base A is drawn in fp32 and not rounded through the base's dtype first,
          so its support bound holds exactly. No rsLoRA, no trainable bias.
        - From the authors' code: `eval()` does not merge; merging is an explicit call, so the base weight
          collects no rounding errors.
    """

    Config = LoRAConfig

    def build(self) -> None:
        """A (r, in) and B (out, r). Any rank is allowed, above min(in, out) too."""
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
        """drop(x) in the adapter's dtype; consumes random numbers only where dropout is active."""
        x = x.to(self.A.dtype)
        active = self.training and self.config.dropout > 0
        return F.dropout(x, self.config.dropout) if active else x

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y + s · drop(x) Aᵀ Bᵀ; scaling the (..., r) product is the cheapest place for s."""
        h = F.linear(self.dropped(x), self.A) * self.scale
        return add_linear(y, h, self.B)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        return torch.addmm(W, self.B, self.A, alpha=self.scale), b

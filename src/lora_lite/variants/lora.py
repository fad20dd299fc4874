"""LoRA: y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from ..config import LoRAConfig
from ..variant import Variant, add, plus_product, register

__all__ = ["LoRA"]


@register
class LoRA(Variant):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685v2, Eq. (3) and the α/r sentence after it, §4.1).

    Equation
        y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ,   s = α / r;   merged: W + s B A, bias unchanged.
        With ``rslora`` s = α / √r (rank-stabilised LoRA, Kalajdzievski, arXiv 2312.03732). Several active ones add.
    Shapes
        A (r, in), B (out, r), in fp32 (fp64 on an fp64 base). W (out, in) and b (out,) are frozen. Any rank,
        above min(in, out) too. An embedding is the linear layer of one-hot rows: in = num_embeddings,
        out = embedding_dim. A convolution has A (r, in, kh, kw) and B (out, r/groups, 1, 1), A with the layer's
        stride, padding and dilation; with groups the rank must be a multiple of them, and merging is refused.
    Initialisation
        A ~ U(-1/√in, 1/√in), which is what kaiming-uniform with a = √5 amounts to (in · kh · kw for a
        convolution); B = 0: step 0 is the base. An embedding has A = 0 and B ~ N(0, 1).

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
        https://github.com/microsoft/LoRA/blob/c4593f060e6a368d7bb5af5273b8e42810cdef90/loralib/layers.py

    Deviations
        - From the paper: A uniform, not Gaussian, and dropout; both as in PEFT and in the authors' code.
        - From PEFT: on a half-precision base A is drawn in fp32 and not rounded through the base's dtype
          first, so its support bound holds exactly. No trainable bias.
        - From PEFT: a convolution's dilation and padding mode are those of the layer; PEFT's A has neither. An
          embedding's max_norm never renormalises A, which PEFT's lookup does in place.
        - From the authors' code: `eval()` does not merge; merging is an explicit call, so the base weight
          collects no rounding errors.
    """

    Config = LoRAConfig
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv1d", "embedding", "conv2d")
    joins = "adds"

    def build(self) -> None:
        """A (r, in) and B (out, r); for other kinds of layers the shapes above."""
        A, B = self.shapes
        self.A = self.parameter(*A)
        self.B = self.parameter(*B)

    @property
    def scale(self) -> float:
        """s = α / r, or α / √r with rslora."""
        r = math.sqrt(self.rank) if self.config.rslora else self.rank
        return float(self.option("alpha") / r)

    def init(self, layer: nn.Module) -> None:
        """A uniform in ±1/√in, B zero; for an embedding A zero, B standard normal."""
        self.kind.start(self.A, self.B)

    def dropped(self, x: Tensor) -> Tensor:
        """drop(x) in the adapter's dtype; random numbers are drawn only where dropout is active."""
        if self.kind.name == "embedding":
            return x
        x = x.to(self.A.dtype)
        return dropout(x, self.config.dropout) if self.drops else x

    @property
    def drops(self) -> bool:
        """Whether dropout is active; tokens are never dropped, as in PEFT."""
        return self.training and self.config.dropout > 0 and self.kind.name != "embedding"

    def coordinates(self, layer: nn.Module, x: Tensor) -> Tensor:
        """s · x Aᵀ (..., r), which is the cheapest place for s."""
        return self.kind.down(layer, x, self.A) * self.scale

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y + s · drop(x) Aᵀ Bᵀ."""
        if self.kind.sums_in_one:
            return plus_product(y, self.coordinates(layer, self.dropped(x)), self.B)
        return add(y, self.change(layer, x, y))

    def change(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """s · drop(x) Aᵀ Bᵀ (..., out)."""
        return self.kind.up(layer, self.coordinates(layer, self.dropped(x)), self.B)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        return torch.add(W, self.kind.product(self.A, self.B), alpha=self.scale), b

    def merge_problem(self, layer: nn.Module) -> str | None:
        return super().merge_problem(layer) or self.kind.merge_problem(layer)

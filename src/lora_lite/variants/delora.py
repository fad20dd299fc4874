"""DeLoRA: y = x Wᵀ + b + (drop(x) ⊙ ‖W‖_col) Aᵀ diag(ξ) Bᵀ with ξ_i = λ / (r ‖b_i‖ ‖a_i‖)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from ..config import DeLoRAConfig
from ..variant import Variant, plus_product, register, weight_of

__all__ = ["DeLoRA"]

SMALLEST_NORM = 1e-4


@register
class DeLoRA(Variant):
    """Decoupled low-rank adaptation (Bini et al., arXiv 2503.18225v2, Eqs. (5), (7), (8)).

    Equation
        ΔW = (λ/r) B Ξ A diag(w_norm),  Ξ_ii = 1 / (max(‖b_i‖, 1e-4) max(‖a_i‖, 1e-4)),  w_norm = ‖W‖_col:
        y = x Wᵀ + b + drop(x) ΔWᵀ; merged: W + ΔW, bias unchanged. λ bounds the strength: ‖(λ/r) B Ξ A‖ ≤ λ.
        Several active ones add.
    Shapes
        A (r, in), B (out, r), λ (1,), all trained; w_norm (in,) is a persistent buffer, saved with the
        adapter: the norm of each column of W (out, in), one per input channel, taken once at the start.
    Initialisation
        A ~ U(-1/√in, 1/√in) (kaiming-uniform, a = √5), B = 0, λ = lambda0 (15): step 0 is the base.
        With B = 0 the clamp decides the first step: the gradient of B is larger by 1e4, so that an Adam
        step of any size moves ΔW to the order of its bound at once; A and λ have no gradient before that.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/delora/layer.py
        https://github.com/ExplainableML/DeLoRA/blob/82bfcb01e22e111ac0576def75db8e29a27f1851/peft/src/peft/tuners/delora.py

    Deviations
        - From the paper and the authors' code: they start at random A and B and subtract the frozen initial
          product, Eq. (9); PEFT and this start at B = 0 and clamp the norms. The paper leaves ‖W‖ without an
          index, both codes take it per column; the authors recompute it on every call, PEFT and this keep it.
        - From PEFT: on a half-precision base A, w_norm and λ are not rounded through the base's dtype, and
          the sum is rounded once, ΔW's part not before it. GPT-2's Conv1D is supported.
    """

    Config = DeLoRAConfig
    needs_weight = True
    joins = "adds"
    w_norm: Tensor

    def build(self) -> None:
        """A (r, in), B (out, r), λ (1,), and the buffer w_norm (in,)."""
        self.A = self.parameter(self.rank, self.in_features)
        self.B = self.parameter(self.out_features, self.rank)
        self.lambda_ = self.parameter(1)
        self.register_buffer("w_norm", self.empty(self.in_features))

    @torch.no_grad()
    def init(self, layer: nn.Module) -> None:
        """A uniform in ±1/√in, B zero, λ = lambda0, w_norm = ‖W‖_col."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)
        nn.init.constant_(self.lambda_, self.option("lambda0"))
        self.w_norm.copy_(torch.linalg.vector_norm(weight_of(layer), dim=0, dtype=self.w_norm.dtype))

    def scale(self) -> Tensor:
        """(λ/r) Ξ as a vector (r,): λ / (r max(‖a_i‖, 1e-4) max(‖b_i‖, 1e-4))."""
        a = self.A.norm(dim=1).clamp(min=SMALLEST_NORM)
        b = self.B.norm(dim=0).clamp(min=SMALLEST_NORM)
        return self.lambda_ / self.rank / (a * b)

    def dropped(self, x: Tensor) -> Tensor:
        """drop(x); random numbers are drawn only where dropout is active."""
        active = self.training and self.config.dropout > 0
        return dropout(x, self.config.dropout) if active else x

    def coordinates(self, x: Tensor) -> Tensor:
        """(drop(x) ⊙ w_norm) Aᵀ diag((λ/r) Ξ) (..., r), w_norm taken to A, which is smaller than x."""
        return linear(self.dropped(x).to(self.A.dtype), self.A * self.w_norm) * self.scale()

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y + (drop(x) ⊙ w_norm) Aᵀ diag((λ/r) Ξ) Bᵀ."""
        return plus_product(y, self.coordinates(x), self.B)

    def change(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(drop(x) ⊙ w_norm) Aᵀ diag((λ/r) Ξ) Bᵀ (..., out)."""
        return linear(self.coordinates(x), self.B)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + (λ/r) B Ξ A diag(w_norm)."""
        return torch.addmm(W, self.B * self.scale(), self.A * self.w_norm), b

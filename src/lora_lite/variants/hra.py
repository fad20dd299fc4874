"""HRA: y = x (W H₁ H₂ … H_r)ᵀ + b with H_i = I - 2 u_i u_iᵀ / ‖u_i‖²."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..config import HRAConfig
from ..kinds import dense
from ..switch import alone
from ..variant import Variant, add, full_precision, register, weight_of, widened

__all__ = ["HRA"]


class Reflect(torch.autograd.Function):
    """x Hᵀ = x - h Ûᵀ (n, in) and h = (x Û) M⁻ᵀ (n, r), from x (n, in), Ûᵀ (r, in) and M (r, r).

    The backward pass is what autograd would do, but adds x's two gradients in one pass instead of two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
        h = coordinates(x, rows, M)
        return torch.addmm(x, h, rows, alpha=-1), h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, rows, M, h = ctx.saved_tensors
        with full_precision(dy):
            dk = torch.linalg.solve_triangular(M, dh - linear(dy, rows), upper=True, left=False)
            dx = torch.addmm(dy, dk, rows) if ctx.needs_input_grad[0] else None
            return dx, torch.addmm(dk.T @ x, h.T, dy, alpha=-1), -(dk.T @ h)


def coordinates(x: Tensor, rows: Tensor, M: Tensor) -> Tensor:
    """(x Û) M⁻ᵀ (n, r) for x (n, in): solved, since an explicit inverse loses digits for r above in."""
    return torch.linalg.solve_triangular(M.T, linear(x, rows), upper=False, left=False)


@register
class HRA(Variant):
    """Householder reflection adaptation (Yuan et al., arXiv 2405.17484v3, Eqs. (1) to (5)).

    Equation
        y = x (W H₁ H₂ … H_r)ᵀ + b,  H_i = I - 2 u_i u_iᵀ / ‖u_i‖²: H_r meets x first, then …, then W.
        Gram-Schmidt mode: y = x (W (I - 2 Q Qᵀ))ᵀ + b, Q the orthonormalised columns of U.
        Several active ones chain, W H_a H_b in the order in which they were activated, as in PEFT.
        The bias is untouched; merged: W H. There is no eps: a zero column gives NaN, as in PEFT.
    Shapes
        U (in, r), reflection i is column i, in fp32 (fp64 on an fp64 base).
    Initialisation
        r/2 columns ~ U(-1/√(r/2), 1/√(r/2)), each one twice: H H = I, so step 0 is the base up to rounding,
        and both columns of a pair get a gradient (equal and opposite). Therefore no zero-initialised gate:
        with y = base + gate · (...) and gate = 0 the vectors would have no gradient at all on step 0.
        An odd rank would leave one random reflection at the start and is refused (a file's is taken).
        Gram-Schmidt mode can never start at the identity (I - 2QQᵀ has the eigenvalue -1, r times), and pairs
        are degenerate there, since two equal columns span one direction. It starts unpaired: r independent
        columns ~ U(-1/√r, 1/√r). Any rank up to in_features.
    How it is computed
        Compact WY: with Û the normalised columns, H₁ … H_r = I - Û M⁻¹ Ûᵀ, M = ½ I + striu(ÛᵀÛ) (r × r, upper
        triangular). So x Hᵀ = x - ((x Û) M⁻ᵀ) Ûᵀ: two skinny products and a triangular solve in front of the
        layer, in fp32 and outside autocast, and nothing of size in × in or out × in. Where x needs no
        gradient (a model's first layer) the same is subtracted behind it, y - ((x Û) M⁻ᵀ) (W Û)ᵀ, and the
        backward pass need not go through W.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/hra/layer.py
        https://github.com/DaShenZi721/HRA/blob/8e0c6371e4928df6f69a56baae4ff90fb2619ccb/generation/control/hra.py
        https://github.com/DaShenZi721/HRA/blob/8e0c6371e4928df6f69a56baae4ff90fb2619ccb/nlu/adapterlib/layers.py
        https://github.com/DaShenZi721/HRA/blob/8e0c6371e4928df6f69a56baae4ff90fb2619ccb/llama/peft/oft/layer.py

    Deviations
        - From the paper: the pairing is PEFT's and the authors' code's, the text gives no start.
        - From PEFT: an odd rank is refused, PEFT warns and starts at a random reflection. Gram-Schmidt mode
          starts unpaired, PEFT's paired start normalises rounding noise there; Q comes from a QR
          factorisation, so dependent columns give an orthogonal, if arbitrary, completion, and a rank above
          in_features is refused. On a half-precision base U is not rounded through the base's dtype, and what
          is rounded is the reflected input, not the reflected weight. GPT-2's Conv1D is supported.
        - From the authors' llama code: it reflects the output side, with an eps inside the norm.
        - The orthogonality regulariser, Eq. (6), is left to the training loop.
    """

    Config = HRAConfig
    joins = "chains"

    def build(self) -> None:
        """U (in, r). Raises ValueError for a Gram-Schmidt rank above in_features."""
        if self.config.gram_schmidt and self.rank > self.in_features:
            raise ValueError(
                f"HRA's Gram-Schmidt mode needs a rank of at most in_features={self.in_features}, "
                f"got {self.rank}"
            )
        self.U = self.parameter(self.in_features, self.rank)

    @torch.no_grad()
    def init(self, layer: nn.Module) -> None:
        """Kaiming-uniform (a = √5) columns, each one twice; unpaired in Gram-Schmidt mode.

        Raises ValueError for an odd rank of the chain.
        """
        if self.rank % 2 and not self.config.gram_schmidt:
            raise ValueError(
                f"HRA needs an even rank, got {self.rank}: reflections start as equal pairs that cancel, "
                "and an odd one out would start the layer at a random reflection"
            )
        copies = 1 if self.config.gram_schmidt else 2
        distinct = self.U.new_empty(self.in_features, self.rank // copies)
        bound = 1 / math.sqrt(distinct.shape[1])
        self.U.copy_(distinct.uniform_(-bound, bound).repeat_interleave(copies, dim=1))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Û (in, r) and M (r, r) with H = I - Û M⁻¹ Ûᵀ; Q and ½ I in Gram-Schmidt mode."""
        U = widened(self.U)
        half = torch.eye(self.rank, dtype=U.dtype, device=U.device) / 2
        if self.config.gram_schmidt:
            return torch.linalg.qr(U).Q, half
        unit = U / U.norm(dim=0)
        return unit, half + (unit.T @ unit).triu(1)

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x Hᵀ = x - ((x Û) M⁻ᵀ) Ûᵀ."""
        if self._acts_behind(layer, x):
            return x
        with full_precision(x):
            unit, M = self.factors()
            wide = x.to(unit.dtype).reshape(-1, self.in_features)
            return Reflect.apply(wide, unit.T.contiguous(), M)[0].view(x.shape).to(x.dtype)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y - ((x Û) M⁻ᵀ) (W Û)ᵀ, the same, for an x that needs no gradient."""
        if not self._acts_behind(layer, x):
            return y
        with full_precision(x):
            unit, M = self.factors()
            h = coordinates(x.to(unit.dtype).reshape(-1, self.in_features), unit.T, M)
            return add(y, -linear(h, weight_of(layer) @ unit).view(y.shape))

    def _acts_behind(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether to correct the output: only for U's sake would the gradient have to come back through W. An
        input that :meth:`before` has reflected carries a gradient, so the two never act both."""
        by_itself = torch.is_grad_enabled() and self.U.requires_grad and not x.requires_grad
        wide = layer.weight.dtype in (torch.float32, torch.float64)  # widening another one would copy it
        return by_itself and wide and dense(layer.weight) and alone(layer)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W H = W - ((W Û) M⁻¹) Ûᵀ."""
        unit, M = self.factors()
        return W - torch.linalg.solve_triangular(M, W @ unit, upper=True, left=False) @ unit.T, b

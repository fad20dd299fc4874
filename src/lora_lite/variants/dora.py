"""DoRA: y = x (diag(m / ‖V‖_row) V)ᵀ + b with V = W + s B A and the norm detached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import DoRAConfig
from ..variant import Variant, add, bias_of, full_precision, register, weight_of, widened
from .lora import LoRA

__all__ = ["DoRA"]


class Scale(torch.autograd.Function):
    """g ⊙ (y + h Bᵀ) + (1 - g) ⊙ b (n, out), from y (n, out), h (n, r), B (out, r), g (out,) and b (out,) or None,
    which means zero.

    g goes into B, so that the output is written in two passes. The backward pass is what autograd would do, and keeps
    y, which the layer has computed anyway, as the one tensor of the output's size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, h: Tensor, B: Tensor, g: Tensor, b: Tensor | None) -> Tensor:
        scaled = (g[:, None] * B).t()
        v = h @ scaled if b is None else torch.addmm((1 - g) * b, h, scaled)
        return v.addcmul_(y, g)  # in place: a fresh tensor of this size costs more than the sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, h, B, g, b = ctx.saved_tensors
        with full_precision(dout):
            both = (h.t() @ dout).t()  # quicker than the product the other way round
            wide = dout * y
            dg = wide.sum(0) + (B * both).sum(1)
            dg = dg if b is None else dg - b * dout.sum(0)
            dy = wide.copy_(dout).mul_(g) if ctx.needs_input_grad[0] else None
            return dy, dout @ (g[:, None] * B), g[:, None] * both, dg, None


@register
class DoRA(LoRA):
    """Weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353, Eqs. (5) and (11), §4.3).

    Equation
        V = W + s B A,  s = α / r,  g = m / ‖V‖_row with ‖V‖_row held constant (detached):
        y = x Wᵀ + b + (g - 1) ⊙ drop(x) Wᵀ + g ⊙ s drop(x) Aᵀ Bᵀ.
        Without dropout that is x (diag(g) V)ᵀ + b; merged: diag(g) V. The bias is not scaled by g. Several
        active ones add what each changes of the base: W + Σ (diag(g_i) V_i - W).
    Shapes
        A (r, in), B (out, r), m (out,): one magnitude for each output, the norm of a row of W (out, in); of
        an embedding, the norm of one dimension over all tokens. A and B of other kinds of layers as LoRA.
    Initialisation
        A, B as LoRA; m = ‖W‖_row: g is exactly 1 and step 0 is the base bit for bit.
    What detaching the norm means
        ‖V‖_row follows A and B in the forward pass but is a constant in the backward pass, so the gradient of
        V is (m/‖V‖) ∇W' (Eq. (11)) without the projection onto the complement of V of Eq. (6): less memory,
        and A and B also receive the part of the gradient that only rescales a row.
    Cost
        The norms come from W Aᵀ and A Aᵀ, or, where that would cancel and on other devices than the CPU, from
        W + s B A a block of rows at a time; the whole is never built. Where no dropout is active, x Wᵀ is taken
        from the layer's own output instead of being computed again, and that is the one tensor of the output's
        size kept for the backward pass.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/dora.py
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/variants.py
        https://github.com/NVlabs/DoRA/blob/7e2f10abbe8efe212c8fca1d983ae1d04ef13a18/commonsense_reasoning/peft/src/peft/tuners/dora.py

    Deviations
        - From the paper: it writes the norm over columns of W (d × k), which for h = W x are inputs; PEFT and
          the authors' code both take the rows, one magnitude for each output, and so does this.
        - From PEFT: on a half-precision base m is kept in fp32 and not rounded through the base's dtype, so
          the start is the identity in bf16 too (PEFT's is off in about every seventh output).
        - From both: a zero row of V gives g = 0/0 = NaN there; here such a row has g = m + 1, that is 1 at
          the start, so a zero row of W (a pruned output) passes through and A, B get gradients.
    """

    Config = DoRAConfig
    needs_weight = True
    takes_quantised = False

    def _check_weight(self, layer: nn.Module) -> None:
        super()._check_weight(layer)
        if problem := self.kind.merge_problem(layer):
            raise ValueError(f"dora needs W + s B A, but {problem}")

    def conflict(self, other: Variant) -> str | None:
        """PiSSA leaves a residual of the W that DoRA scales."""
        return other.conflict(self) if other.Config.variant == "pissa" else super().conflict(other)

    def build(self) -> None:
        """A (r, in), B (out, r), m (out,)."""
        super().build()
        self.m = self.parameter(self.out_features)

    @torch.no_grad()
    def init(self, layer: nn.Module) -> None:
        """A, B as LoRA, m = ‖W + s B A‖_row, with the very function that the forward pass divides by."""
        super().init(layer)
        self.m.copy_(self.row_norm(weight_of(layer)))

    @torch.no_grad()
    def row_norm(self, W: Tensor) -> Tensor:
        """‖W + s B A‖_row (out,), detached."""
        with full_precision(W):
            # Elsewhere than on the CPU, looking at the result would wait for the device.
            if W.device.type == "cpu" and not torch.compiler.is_compiling():
                square, own = self._expanded(W)
                if (square >= own / 4).all():
                    return square.sqrt()
            blocks = zip(self._blocks(W), self.B.split(self._rows), strict=True)
            return torch.cat([self._combine(w, b).norm(dim=1) for w, b in blocks])

    def _expanded(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """‖w + s b A‖² (out,) as ‖w‖² + 2 s ⟨w Aᵀ, b⟩ + s² ⟨b A Aᵀ, b⟩, and ‖w‖², beside which it is small where
        s B A is close to -W and digits are lost. From a quarter of ‖w‖² on, no term is above twelve times the sum."""
        A, B = widened(self.A.flatten(1)), widened(self.B.flatten(1)) * self.scale
        same = W.dtype == A.dtype
        product = W @ A.t() if same else torch.cat([w.to(A.dtype) @ A.t() for w in self._blocks(W)])
        own = torch.linalg.vector_norm(W, dim=1, dtype=B.dtype).square()
        return own + (B * torch.addmm(product, B, A @ A.t(), beta=2)).sum(1), own

    @property
    def _rows(self) -> int:
        return max(64, -(-self.out_features // 8))

    def _blocks(self, W: Tensor) -> tuple[Tensor, ...]:
        """An eighth of the rows at a time."""
        return W.split(self._rows)

    def _combine(self, W: Tensor, B: Tensor) -> Tensor:
        return torch.addmm(W.to(B.dtype), B.flatten(1), self.A.flatten(1), alpha=self.scale)

    def gain(self, W: Tensor) -> Tensor:
        """g = m / ‖V‖_row (out,), and m + 1 for a zero row."""
        norm = self.row_norm(W)
        zero = (norm == 0).to(norm.dtype)
        return (self.m + zero) / (norm + zero)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y + (g - 1) ⊙ (z + v) + v with z = drop(x) Wᵀ and v = s drop(x) Aᵀ Bᵀ; undropped, z is y - b."""
        if self.drops or not self.kind.sums_in_one:
            return add(y, self.change(layer, x, y))
        h = self.coordinates(layer, x.to(self.A.dtype)).reshape(-1, self.rank)
        with full_precision(y):
            g, b = self.gain(weight_of(layer)), bias_of(layer)
            b = None if b is None else b.to(g.dtype)
            wide = (t.to(g.dtype) for t in (y.reshape(-1, self.out_features), h, self.B))
            return Scale.apply(*wide, g, b).view(y.shape).to(y.dtype)

    def change(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """(g - 1) ⊙ (z + v) + v (..., out)."""
        dropped = self.dropped(x)
        z = self._base_product(layer, dropped, y)
        v = self.kind.up(layer, self.coordinates(layer, dropped), self.B)
        return self.kind.per_output(self.gain(weight_of(layer)) - 1) * (z + v) + v

    def _base_product(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x Wᵀ (..., out); where nothing was dropped it is in y already."""
        if self.drops:
            W = weight_of(layer)
            return self.kind.apply(layer, x.to(W.dtype), W)
        b = bias_of(layer)
        return y if b is None else y - self.kind.per_output(b)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """diag(g) (W + s B A), bias unchanged."""
        return self.gain(W)[:, None] * self._combine(W, self.B), b

"""Odd but right: single precision throughout, a backward of one's own, functional calls, caches.

Answers are in the dtype of x, under autocast too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot
from tests.subjects.files import InSafetensors


class Single(nn.Module):
    """LoRA or (IA)³ in float32 whatever the base is; the result is cast back."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        if spec.rank < 1:
            raise ValueError("rank below one")
        base.requires_grad_(False)
        self.base, self.spec = base, spec
        self.drop = nn.Dropout(spec.dropout)
        if spec.variant == "lora":
            self.A = nn.Parameter(torch.empty(spec.rank, base.in_features))
            self.B = nn.Parameter(torch.zeros(base.out_features, spec.rank))
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        else:
            self.l = nn.Parameter(torch.ones(base.in_features if spec.feedforward else base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        z, W = x.float(), self.base.weight.float()
        b = None if self.base.bias is None else self.base.bias.float()
        if self.spec.variant == "lora":
            y = fn.linear(z, W, b) + self.drop(z) @ self.A.T @ self.B.T * (self.spec.alpha / self.spec.rank)
        elif self.spec.feedforward:
            y = fn.linear(z * self.l, W, b)
        else:
            y = fn.linear(z, W, b) * self.l
        return y.to(x.dtype)


class SinglePrecision(InSafetensors):
    """float32 throughout."""

    name = "single"
    version = "1"
    variants = frozenset({"lora", "ia3"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = Single(base, spec).train(base.training)
        return Adapted(layer, {name: Slot(p) for name, p in layer.named_parameters(recurse=False)})

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "Single"


class LowRankProduct(torch.autograd.Function):
    """s x Aᵀ Bᵀ with the backward written out, as fused kernels do."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.s = s
        return s * (x @ A.T) @ B.T

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, A, B = ctx.saved_tensors
        s, rows = ctx.s, x.reshape(-1, x.shape[-1])
        g = G.reshape(-1, G.shape[-1])
        return s * (G @ B) @ A, s * (g @ B).T @ rows, s * g.T @ (rows @ A.T), None


class OwnBackwardLayer(nn.Module):
    """LoRA with a backward of its own."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        if spec.rank < 1:
            raise ValueError("rank below one")
        self.base, self.spec = base.requires_grad_(False), spec
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        bound = base.in_features**-0.5
        self.A = nn.Parameter(torch.empty(spec.rank, base.in_features, dtype=dtype).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(base.out_features, spec.rank, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        d = fn.dropout(x.to(self.A.dtype), self.spec.dropout, self.training)
        return (y + LowRankProduct.apply(d, self.A, self.B, self.spec.alpha / self.spec.rank)).to(y.dtype)


class OwnBackward(InSafetensors):
    """One variant alone."""

    name = "own_backward"
    version = "1"
    variants = frozenset({"lora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = OwnBackwardLayer(base, spec).train(base.training)
        return Adapted(layer, {"A": Slot(layer.A), "B": Slot(layer.B)})


class Called(nn.Module):
    """DoRA: the bare linear layer is called with other weights through ``torch.func``."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        if spec.rank < 1:
            raise ValueError("rank below one")
        self.inner, self.spec = base.requires_grad_(False), spec
        W = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        self.down = nn.Linear(
            W.shape[1], spec.rank, bias=False, dtype=W.dtype
        )  # its own start is kaiming, √5
        self.up = nn.Linear(spec.rank, W.shape[0], bias=False, dtype=W.dtype)
        nn.init.zeros_(self.up.weight)
        self.magnitude = nn.Parameter(torch.linalg.vector_norm(W, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        W = self.inner.weight.to(self.magnitude.dtype)
        V = W + self.up.weight @ self.down.weight * (self.spec.alpha / self.spec.rank)
        W_ = V * (self.magnitude / torch.linalg.vector_norm(V, dim=1).detach())[:, None]
        z = x.to(W.dtype)
        b = None if self.inner.bias is None else self.inner.bias.to(W.dtype)
        if not (self.training and self.spec.dropout):
            return functional_call(self.inner, {"weight": W_, "bias": b}, (z,)).to(x.dtype)
        d = fn.dropout(z, self.spec.dropout)
        return (functional_call(self.inner, {"weight": W, "bias": b}, (z,)) + d @ (W_ - W).T).to(x.dtype)


class Functional(InSafetensors):
    """``functional_call``; the factors are linear layers of their own."""

    name = "functional_call"
    version = "1"
    variants = frozenset({"dora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = Called(base, spec).train(base.training)
        slots = {"A": layer.down.weight, "B": layer.up.weight, "m": layer.magnitude}
        return Adapted(layer, {name: Slot(tensor) for name, tensor in slots.items()})

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "Called"


class CachedDora(Implementation):
    """DoRA alone, no files: W' is kept between evaluations and made anew when a parameter's version has moved."""

    name = "cached"
    version = "1"
    variants = frozenset({"dora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = VersionedLayer(base, spec).train(base.training)
        slots = {"A": layer.down.weight, "B": layer.up.weight, "m": layer.magnitude}
        return Adapted(layer, {name: Slot(tensor) for name, tensor in slots.items()})

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "VersionedLayer"


class VersionedLayer(Called):
    """Evaluation without gradients looks at the parameters' version counters."""

    seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        now = tuple(p._version for p in self.parameters())
        if now != self.seen:
            eye = torch.eye(self.inner.in_features, dtype=self.magnitude.dtype)
            zero = super().forward(eye[:1] * 0)
            self.kept, self.seen = (super().forward(eye) - zero).T, now
        b = None if self.inner.bias is None else self.inner.bias.to(self.kept.dtype)
        return fn.linear(x.to(self.kept.dtype), self.kept, b).to(x.dtype)


class FoldingLayer(nn.Linear):
    """LoRA that eval() folds into the weight and train() takes out again, bit for bit."""

    kept: Tensor | None = None

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        kind = {"dtype": base.weight.dtype}
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, **kind)
        if spec.rank < 1:
            raise ValueError("rank below one")
        self.load_state_dict(base.state_dict())
        self.requires_grad_(False)
        self.spec, self.s, bound = spec, spec.alpha / spec.rank, base.in_features**-0.5
        self.A = nn.Parameter(torch.empty(spec.rank, base.in_features, **kind).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(base.out_features, spec.rank, **kind))

    def train(self, mode: bool = True) -> FoldingLayer:
        if not mode and self.kept is None:
            self.kept = self.weight.data
            self.weight.data = self.kept + (self.B @ self.A).data * self.s
        elif mode and self.kept is not None:
            self.weight.data, self.kept = self.kept, None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.kept is not None:
            return y
        return y + fn.dropout(x, self.spec.dropout, self.training) @ self.A.T @ self.B.T * self.s


class Folding(InSafetensors):
    """As loralib with its defaults; what is loaded over a base in evaluation mode is folded in then."""

    name = "folding"
    version = "1"
    variants = frozenset({"lora"})
    layer: type[FoldingLayer] = FoldingLayer

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = self.layer(base, spec).train(base.training)
        return Adapted(layer, {"A": Slot(layer.A), "B": Slot(layer.B)})

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        mode = adapted.module.training
        adapted.module.train()
        super().fill(adapted, method, tensors).module.train(mode)
        return adapted

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "FoldingLayer"

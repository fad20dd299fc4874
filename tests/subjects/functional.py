"""Style: one generic module, ``linear(x, W', b')``, the effective weight materialised by a pure function.

Dropout has no place in W', so these methods are offered without it. Answers are in the dtype of x, under autocast too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from tests.subjects.files import InFolder

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """How tensors start, what does not train, and W', b' as functions of them."""

    start: Callable[[Tensor, AdapterSpec], Tensors]
    weight: Callable[[Tensor, Tensors, AdapterSpec], Tensor]
    bias: Callable[[Tensor, Tensors, AdapterSpec], Tensor] = lambda b, p, spec: b
    frozen: frozenset[str] = frozenset()


def low_rank(W: Tensor, spec: AdapterSpec) -> Tensors:
    """A ~ U(±1/√in), B = 0."""
    out, in_ = W.shape
    A = (torch.rand(spec.rank, in_, dtype=W.dtype) * 2 - 1) / math.sqrt(in_)
    return {"A": A, "B": W.new_zeros(out, spec.rank)}


def lora_weight(W: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    return torch.addmm(W, p["B"], p["A"], alpha=spec.alpha / spec.rank)


def pissa_start(W: Tensor, spec: AdapterSpec) -> Tensors:
    """The largest singular triples, from eigenvectors of the smaller Gram matrix in float64."""
    X = W.double()
    tall = X.shape[0] >= X.shape[1]
    gram = X.T @ X if tall else X @ X.T
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : spec.rank]
    other = X @ vectors if tall else X.T @ vectors
    S = other.norm(dim=0)
    left, right = (other / S, vectors) if tall else (vectors, other / S)
    s = spec.alpha / spec.rank
    A, B = ((S / s).sqrt() * right).T, left * (S / s).sqrt()
    return {"A": A.to(W.dtype), "B": B.to(W.dtype), "W": (X - s * B @ A).to(W.dtype)}


def dora_start(W: Tensor, spec: AdapterSpec) -> Tensors:
    return {**low_rank(W, spec), "m": W.square().sum(1).sqrt()}


def dora_weight(W: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    """diag(m) V / ‖V‖, the norm without gradient."""
    V = lora_weight(W, p, spec)
    with torch.no_grad():
        norm = V.square().sum(1, keepdim=True).sqrt()
    return p["m"][:, None] * V / norm


def ia3_start(W: Tensor, spec: AdapterSpec) -> Tensors:
    return {"l": torch.ones_like(W[0] if spec.feedforward else W[:, 0])}


def ia3_weight(W: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    return torch.einsum("oi,i->oi" if spec.feedforward else "oi,o->oi", W, p["l"])


def ia3_bias(b: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    return b if spec.feedforward else b * p["l"]


def hra_start(W: Tensor, spec: AdapterSpec) -> Tensors:
    """Pairs of equal columns, entries in ±1/√(r/2)."""
    half = torch.rand(W.shape[1], spec.rank // 2, dtype=W.dtype) * 2 - 1
    return {"U": torch.stack([half, half], 2).flatten(1) / math.sqrt(spec.rank / 2)}


def hra_weight(W: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    """W H₁ … H_r, each factor a whole matrix."""
    eye = torch.eye(W.shape[1], dtype=W.dtype)
    for u in p["U"].T:
        W = W @ (eye - 2 * torch.outer(u, u) / (u @ u))
    return W


def delora_start(W: Tensor, spec: AdapterSpec) -> Tensors:
    return {
        **low_rank(W, spec),
        "lambda": W.new_full((1,), spec.lambda0),
        "w_norm": torch.linalg.vector_norm(W, dim=0),
    }


def delora_weight(W: Tensor, p: Tensors, spec: AdapterSpec) -> Tensor:
    """Ξ folded into both factors: rows of A and columns of B at unit length."""
    A = fn.normalize(p["A"], dim=1, eps=1e-4)
    B = fn.normalize(p["B"], dim=0, eps=1e-4)
    return W + p["lambda"] / spec.rank * (B @ A) * p["w_norm"]


METHODS: Mapping[str, Method] = {
    "lora": Method(low_rank, lora_weight),
    "pissa": Method(pissa_start, lambda W, p, spec: lora_weight(p["W"], p, spec), frozen=frozenset({"W"})),
    "dora": Method(dora_start, dora_weight),
    "ia3": Method(ia3_start, ia3_weight, ia3_bias),
    "hra": Method(hra_start, hra_weight),
    "delora": Method(delora_start, delora_weight, frozen=frozenset({"w_norm"})),
}


class Effective(nn.Module):
    """``fn.linear(x, W', b')``; everything is computed in float32 or finer and cast back."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec, method: Method) -> None:
        super().__init__()
        self.spec, self.method = spec, method
        self.base = base
        for parameter in base.parameters():
            parameter.requires_grad = False
        W = base.weight.detach()
        for name, tensor in method.start(W.float() if W.dtype.itemsize == 2 else W, spec).items():
            if name in method.frozen:
                self.register_buffer(f"adapter_{name}", tensor)
            else:
                self.register_parameter(f"adapter_{name}", nn.Parameter(tensor))

    def tensors(self) -> Tensors:
        live = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        return {name.removeprefix("adapter_"): tensor for name, tensor in live.items()}

    def effective(self) -> tuple[Tensor, Tensor | None]:
        p = self.tensors()
        wide = next(iter(p.values())).dtype
        b = self.base.bias
        W = self.method.weight(self.base.weight.to(wide), p, self.spec)
        return W, None if b is None else self.method.bias(b.to(wide), p, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        W, b = self.effective()
        return fn.linear(x.to(W.dtype), W, b).to(x.dtype)


class Library(InFolder):
    """Functional adapters without dropout; HRA with even ranks and without Gram-Schmidt."""

    name = "functional"
    version = "0.3"
    variants = frozenset(METHODS)
    METHODS: ClassVar[Mapping[str, Method]] = METHODS

    def __init__(self, methods: Mapping[str, Method] | None = None) -> None:
        self.methods = {**self.METHODS, **(methods or {})}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        self.check(base, spec)
        layer = Effective(base, spec, self.methods[spec.variant])
        return Adapted(layer, {name: Slot(tensor) for name, tensor in layer.tensors().items()})

    def check(self, base: nn.Linear, spec: AdapterSpec) -> None:
        """Raises for what is not offered."""
        if spec.rank <= 0:
            raise ValueError("rank must be positive")
        if spec.dropout:
            raise Unsupported("dropout is not offered: the weight is materialised")
        if spec.gram_schmidt:
            raise Unsupported("gram_schmidt is not offered")
        if spec.variant == "hra" and spec.rank % 2:
            raise Unsupported("HRA takes even ranks only")
        if spec.variant == "pissa" and spec.rank > min(base.weight.shape):
            raise Unsupported("PiSSA takes ranks up to min(in, out)")

    def merge(self, adapted: Adapted) -> nn.Linear:
        W, b = adapted.module.effective()
        layer = nn.Linear(W.shape[1], W.shape[0], bias=b is not None)
        layer = layer.to(adapted.module.base.weight.dtype)
        layer.load_state_dict({"weight": W} if b is None else {"weight": W, "bias": b})
        return layer

    def detach(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.base

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "Effective"

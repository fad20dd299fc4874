"""Style: the papers' row-vector layout. A is (in, r), B (r, out), m and l rows or columns, U (r, in).

Answers are in the dtype of x, under autocast too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from tests.subjects.files import InSafetensors


def turn(t: Tensor) -> Tensor:
    return t.mT


def first_row(t: Tensor) -> Tensor:
    return t[0]


def first_column(t: Tensor) -> Tensor:
    return t[:, 0]


def one(t: Tensor) -> Tensor:
    return t.reshape(1)


class RowVectors(nn.Module):
    """x @ W with W (in, out); the base's weight is kept transposed and contiguous."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = base.weight.dtype
        self.inner = self.dtype if self.dtype == torch.float64 else torch.float32
        self.register_buffer("frozen", base.weight.detach().mT.contiguous())
        self.register_buffer("shift", None if base.bias is None else base.bias.detach().clone())
        self.p = nn.ParameterDict()
        self.views: dict[str, object] = {}
        getattr(self, "start_" + spec.variant)(self.frozen.to(self.inner))

    def keep(self, name: str, tensor: Tensor, view: object) -> None:
        self.p[name] = nn.Parameter(tensor)
        self.views[name] = view

    def start_lora(self, W: Tensor) -> None:
        in_, out = W.shape
        bound = in_**-0.5
        self.keep("A", torch.empty(in_, self.spec.rank, dtype=W.dtype).uniform_(-bound, bound), turn)
        self.keep("B", torch.zeros(self.spec.rank, out, dtype=W.dtype), turn)

    def start_pissa(self, W: Tensor) -> None:
        """Eq. (2), (3) as the paper has them, W being (in, out)."""
        r, s = self.spec.rank, self.spec.alpha / self.spec.rank
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        sign = -1.0  # any sign will do, as long as both factors have it
        A, B = sign * U[:, :r] * (S[:r] / s).sqrt(), sign * (S[:r] / s).sqrt()[:, None] * Vh[:r]
        self.keep("A", A.to(W.dtype), turn)
        self.keep("B", B.to(W.dtype), turn)
        self.frozen.copy_(W - s * A @ B)

    def start_dora(self, W: Tensor) -> None:
        self.start_lora(W)
        self.keep("m", W.norm(dim=0, keepdim=True), first_row)

    def start_ia3(self, W: Tensor) -> None:
        ff = self.spec.feedforward
        self.keep(
            "l", W.new_ones((1, W.shape[0]) if ff else (W.shape[1], 1)), first_row if ff else first_column
        )

    def start_hra(self, W: Tensor) -> None:
        half = torch.rand(self.spec.rank // 2, W.shape[0], dtype=W.dtype) * 2 - 1
        self.keep("U", half.repeat_interleave(2, 0) / (self.spec.rank // 2) ** 0.5, turn)

    def start_delora(self, W: Tensor) -> None:
        self.start_lora(W)
        self.keep("lambda", torch.tensor(float(self.spec.lambda0), dtype=W.dtype), one)
        self.register_buffer("w_norm", W.norm(dim=1, keepdim=True))

    def slots(self) -> dict[str, Slot]:
        found = {name: Slot(self.p[name], view) for name, view in self.views.items()}
        if self.spec.variant == "pissa":
            found["W"] = Slot(self.frozen, turn)
        if self.spec.variant == "delora":
            found["w_norm"] = Slot(self.w_norm, first_column)
        return found

    def delta(self) -> Tensor:
        """What is added to W (in, out) where the method adds."""
        A, B, r = self.p["A"], self.p["B"], self.spec.rank
        if self.spec.variant != "delora":
            return self.spec.alpha / r * A @ B
        xi = (A.norm(dim=0).clamp(min=1e-4) * B.norm(dim=1).clamp(min=1e-4)).reciprocal()
        return self.p["lambda"] / r * self.w_norm * (A * xi @ B)

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, "call_" + self.spec.variant, self.call_added)(
            x.to(self.inner), self.frozen.to(self.inner)
        )
        if self.shift is None:
            return y.to(x.dtype)
        gated = self.spec.variant == "ia3" and not self.spec.feedforward
        return (y + (self.shift * self.p["l"][:, 0] if gated else self.shift)).to(x.dtype)

    def call_added(self, x: Tensor, W: Tensor) -> Tensor:
        d = nn.functional.dropout(x, self.spec.dropout, self.training)
        return x @ W + d @ self.delta()

    def call_dora(self, x: Tensor, W: Tensor) -> Tensor:
        d = nn.functional.dropout(x, self.spec.dropout, self.training)
        V = W + self.delta()
        g = self.p["m"] * V.detach().square().sum(0, keepdim=True).rsqrt()
        return x @ W + d @ (V * g - W)

    def call_ia3(self, x: Tensor, W: Tensor) -> Tensor:
        return (x * self.p["l"]) @ W if self.spec.feedforward else x @ (W * self.p["l"].mT)

    def call_hra(self, x: Tensor, W: Tensor) -> Tensor:
        """x H_r … H₁ W as row vectors."""
        for u in self.p["U"].flip(0):
            x = x - torch.outer(x.reshape(-1, x.shape[-1]) @ u * (2 / u.dot(u)), u).reshape(x.shape)
        return x @ W


class Library(InSafetensors):
    """Row-vector adapters."""

    name = "transposed"
    version = "1.0rc1"
    variants = frozenset({"lora", "pissa", "dora", "ia3", "hra", "delora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.rank < 1:
            raise ValueError("rank")
        if spec.gram_schmidt:
            raise Unsupported("no Gram-Schmidt")
        if spec.variant == "hra" and spec.rank % 2:
            raise ValueError("rank must be even")
        if spec.variant == "pissa" and spec.rank > min(base.weight.shape):
            raise ValueError("rank above min(in, out)")
        layer = RowVectors(base, spec).train(base.training)
        return Adapted(layer, layer.slots())

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "RowVectors"

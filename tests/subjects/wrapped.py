"""Style: the layer is replaced by a module that holds the wrapped ``nn.Linear`` and the adapter.

Each variant is a class of small methods, so that a broken subject is one of them overridden.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Slot
from tests.subjects.files import InSafetensors

PARAMETERS = ("A", "B", "m", "l", "U", "lambda_")


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half precisions, the dtype itself otherwise."""
    return torch.promote_types(dtype, torch.float32)


def answered(y: Tensor, x: Tensor) -> Tensor:
    """y in the dtype in which a plain layer answers x: autocast's where that is on, else x's."""
    device = x.device.type
    return y.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype)


class Wrapped(nn.Module):
    """The base layer, frozen, beside an adapter."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        if spec.rank < 1:
            raise ValueError(f"rank is {spec.rank}, expected at least 1")
        self.base, self.spec = base.requires_grad_(False), spec
        self.drop = nn.Dropout(spec.dropout)
        self.dtype = wide(base.weight.dtype)
        self.build()
        self.train(base.training)

    @property
    def s(self) -> float:
        """The factor on the update."""
        return self.spec.alpha / self.spec.rank

    @property
    def w0(self) -> Tensor:
        return self.base.weight.to(self.dtype)

    def build(self) -> None:
        """Make the parameters."""
        raise NotImplementedError

    def slots(self) -> dict[str, Slot]:
        """Canonical names of the live tensors."""
        live = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return {name.removesuffix("_"): Slot(tensor) for name, tensor in live.items()}

    def low_rank(self) -> None:
        """A (r, in), kaiming-uniform with a = √5; B (out, r), zero."""
        r, (out, in_) = self.spec.rank, self.base.weight.shape
        self.A = nn.Parameter(torch.empty(r, in_, dtype=self.dtype))
        self.B = nn.Parameter(torch.zeros(out, r, dtype=self.dtype))
        self.start_a(self.A)

    def start_a(self, A: Tensor) -> None:
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))

    def weight(self) -> Tensor:
        """W' (out, in)."""
        raise NotImplementedError

    def bias(self) -> Tensor | None:
        """b'."""
        return self.base.bias

    def merged(self) -> nn.Linear:
        """A plain layer of the base's dtype with W' and b'."""
        out, in_ = self.base.weight.shape
        layer = nn.Linear(in_, out, bias=self.base.bias is not None, dtype=self.base.weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(self.weight())
            if self.base.bias is not None:
                layer.bias.copy_(self.bias())
        return layer

    def detached(self) -> nn.Linear:
        """The base as it was."""
        return self.base


class Lora(Wrapped):
    """LoRA: y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ."""

    def build(self) -> None:
        self.low_rank()

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), self.A), self.B) * self.s

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + self.branch(x)).to(y.dtype)

    def weight(self) -> Tensor:
        return self.w0 + self.s * self.B @ self.A


class Pissa(Lora):
    """PiSSA: the r largest singular triples are trained, the residual W − (α/r) B A is a frozen buffer."""

    def build(self) -> None:
        if self.spec.rank > min(self.base.weight.shape):
            raise ValueError(f"rank is {self.spec.rank}, expected at most {min(self.base.weight.shape)}")
        A, B = self.factors(self.w0)
        self.A, self.B = nn.Parameter(A.contiguous()), nn.Parameter(B.contiguous())
        self.register_buffer("residual", self.rest(A, B).to(self.base.weight.dtype))

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """A = √(S_r/s) V_rᵀ and B = U_r √(S_r/s)."""
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        r = self.spec.rank
        root = (S[:r] / self.s).sqrt()
        return root[:, None] * Vh[:r], U[:, :r] * root

    def rest(self, A: Tensor, B: Tensor) -> Tensor:
        """W_res = W − s B A."""
        return self.w0 - self.s * B @ A

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.A), "B": Slot(self.B), "W": Slot(self.residual)}

    def forward(self, x: Tensor) -> Tensor:
        y = fn.linear(x.to(self.dtype), self.residual.to(self.dtype)) + self.branch(x)
        return answered(y if self.base.bias is None else y + self.base.bias, x)

    def weight(self) -> Tensor:
        return self.residual + self.s * self.B @ self.A


class Dora(Lora):
    """DoRA: each row of V = W + (α/r) B A is brought to length m; ‖V‖ is a constant for the gradient."""

    def build(self) -> None:
        super().build()
        self.m = nn.Parameter(self.start_m())

    def start_m(self) -> Tensor:
        return self.w0.norm(dim=1)

    def v(self) -> Tensor:
        return self.w0 + self.s * self.B @ self.A

    def norm(self) -> Tensor:
        return self.v().detach().norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        g = self.m / self.norm()
        d = self.drop(x.to(self.dtype))
        extra = (g - 1) * fn.linear(d, self.w0) + g * self.s * fn.linear(fn.linear(d, self.A), self.B)
        y = self.base(x)
        return (y + extra).to(y.dtype)

    def weight(self) -> Tensor:
        return (self.m / self.norm())[:, None] * self.v()


class Ia3(Wrapped):
    """(IA)³: y = l ⊙ (x Wᵀ + b), or feed-forward y = (x ⊙ l) Wᵀ + b."""

    def build(self) -> None:
        out, in_ = self.base.weight.shape
        self.l = nn.Parameter(torch.ones(in_ if self.spec.feedforward else out, dtype=self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.feedforward:
            return self.base((x * self.l).to(x.dtype))
        y = self.base(x)
        return (y * self.l).to(y.dtype)

    def weight(self) -> Tensor:
        return self.w0 * self.l if self.spec.feedforward else self.w0 * self.l[:, None]

    def bias(self) -> Tensor | None:
        if self.base.bias is None or self.spec.feedforward:
            return self.base.bias
        return self.base.bias * self.l


class Hra(Wrapped):
    """HRA: y = x (W H₁ … H_r)ᵀ + b, or with Gram-Schmidt y = x (W (I − 2QQᵀ))ᵀ + b."""

    def build(self) -> None:
        self.check_rank(self.spec.rank, self.base.in_features)
        self.U = nn.Parameter(self.start_u(self.base.in_features, self.spec.rank))

    def check_rank(self, r: int, in_: int) -> None:
        """A rank is even, or with Gram-Schmidt at most in."""
        if self.spec.gram_schmidt and r > in_:
            raise ValueError(f"rank is {r}, expected at most {in_}")
        if r % 2 and not self.spec.gram_schmidt:
            warnings.warn(f"the rank {r} is odd: the reflections do not cancel at the start", stacklevel=2)

    def start_u(self, in_: int, r: int) -> Tensor:
        """Kaiming-uniform columns, each twice in a row; an odd rank, or Gram-Schmidt, is drawn column by column."""
        half = torch.empty(in_, r // 2 if r % 2 == 0 else r, dtype=self.dtype)
        if self.spec.gram_schmidt:  # equal columns have nothing left that is orthogonal to one another
            return nn.init.kaiming_uniform_(torch.empty(in_, r, dtype=self.dtype), a=math.sqrt(5))
        if r % 2:
            bound = 1 / math.sqrt(max(r // 2, 1))
            return half.uniform_(-bound, bound)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        return half.repeat_interleave(2, dim=1)

    def q(self) -> Tensor:
        """The columns of U made orthonormal one after the other."""
        done: list[Tensor] = []
        for u in self.U.unbind(1):
            for q in done:
                u = u - (u @ q) * q
            done.append(u / u.norm())
        return torch.stack(done, 1)

    def turned(self, x: Tensor) -> Tensor:
        """x H_r … H₁: the reflection nearest to x is the last."""
        if self.spec.gram_schmidt:
            q = self.q()
            return x - 2 * (x @ q) @ q.T
        for i in self.order():
            u = self.U[:, i]
            x = x - 2 * (x @ u)[..., None] * u / u.dot(u)
        return x

    def order(self) -> list[int]:
        return list(reversed(range(self.spec.rank)))

    def forward(self, x: Tensor) -> Tensor:
        y = fn.linear(self.turned(x.to(self.dtype)), self.w0)
        return answered(y if self.base.bias is None else y + self.base.bias, x)

    def weight(self) -> Tensor:
        return self.w0 @ self.turned(torch.eye(self.base.in_features, dtype=self.dtype)).T


class Delora(Wrapped):
    """DeLoRA: ΔW = (λ/r) B Ξ A diag(‖W‖_col), Ξ_ii = 1/(max(‖b_i‖, 1e-4) max(‖a_i‖, 1e-4))."""

    def build(self) -> None:
        self.low_rank()
        self.lambda_ = nn.Parameter(torch.full((1,), float(self.spec.lambda0), dtype=self.dtype))
        self.register_buffer("w_norm", self.start_norm())

    def start_norm(self) -> Tensor:
        return self.w0.norm(dim=0)

    def factor(self) -> Tensor:
        """(λ/r) Ξ as a vector (r,)."""
        a, b = self.A.norm(dim=1).clamp(min=1e-4), self.B.norm(dim=0).clamp(min=1e-4)
        return self.lambda_ / self.spec.rank / (a * b)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + self.branch(self.drop(x.to(self.dtype)))).to(y.dtype)

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(x * self.w_norm, self.A) * self.factor(), self.B)

    def weight(self) -> Tensor:
        return self.w0 + (self.B * self.factor()) @ self.A * self.w_norm


class Vera(Wrapped):
    """VeRA: y = x Wᵀ + b + b_ ⊙ B (d ⊙ A drop(x)); A and B are frozen and follow projection_prng_key."""

    def build(self) -> None:
        r, (out, in_) = self.spec.rank, self.base.weight.shape
        draws = self.generator()
        for name, shape in (("A", (r, in_)), ("B", (out, r))):
            self.register_buffer(name, self.drawn(shape, draws).to(self.dtype))
        self.d = nn.Parameter(
            torch.full((r,), float(self.spec.options.get("d_initial", 0.1)), dtype=self.dtype)
        )
        self.b = nn.Parameter(torch.zeros(out, dtype=self.dtype))

    def generator(self) -> torch.Generator | None:
        """What A and B are drawn from, one after the other."""
        return torch.Generator().manual_seed(self.spec.options.get("projection_prng_key", 0))

    def drawn(self, shape: tuple[int, int], draws: torch.Generator | None) -> Tensor:
        """Kaiming-uniform in float32."""
        return nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.float32), a=0, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        h = fn.linear(self.drop(x.to(self.dtype)), self.A) * self.d
        return (y + fn.linear(h, self.B) * self.b).to(y.dtype)

    def weight(self) -> Tensor:
        return self.w0 + self.b[:, None] * (self.B * self.d) @ self.A


LAYERS: Mapping[str, type[Wrapped]] = {
    "lora": Lora,
    "pissa": Pissa,
    "dora": Dora,
    "ia3": Ia3,
    "hra": Hra,
    "delora": Delora,
    "vera": Vera,
}


class Library(InSafetensors):
    """The modules above behind the audit's interface; ``layers`` replaces some of them."""

    name = "wrapped"
    version = "1"
    variants = frozenset(LAYERS)
    LAYERS: ClassVar[Mapping[str, type[Wrapped]]] = LAYERS

    def __init__(self, layers: Mapping[str, type[Wrapped]] | None = None) -> None:
        self.layers = {**self.LAYERS, **(layers or {})}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = self.layers[spec.variant](base, spec)
        return Adapted(layer, layer.slots())

    def merge(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.merged()

    def detach(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.detached()

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), LAYERS[variant].__name__

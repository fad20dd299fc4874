"""One declarative record per variant: what it is called, which tensors it has, how they start, what it offers.

Everything that differs between variants and that a check needs to know stands here; no check asks for a
variant's name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from oracles import paper
from oracles.implementation import AdapterSpec

Role = Literal["parameter", "buffer", "base"]
Shape = Callable[[int, int, AdapterSpec], tuple[int, ...]]
Bound = Callable[[int, int, AdapterSpec], float]  # (out, in, spec) -> bound
Exact = Callable[[Tensor, AdapterSpec], Tensor]  # (W (out, in), spec) -> value
Far = Callable[[tuple[int, ...], AdapterSpec, torch.Generator], Tensor]


@dataclass(frozen=True)
class Uniform:
    """Entries drawn from U(-bound, bound); ``columns_paired``: drawn once for columns 2i and 2i+1."""

    bound: Bound
    columns_paired: bool = False


@dataclass(frozen=True)
class Canonical:
    """One canonical tensor: name, shape (out, in, spec) -> dims, role, and how it starts.

    ``exact`` gives the starting value from the base weight in float64; ``uniform`` the distribution it is drawn
    from (``gaussian``: the reference that draws a Gaussian instead); neither: determined up to a gauge (PiSSA).
    ``far`` draws a value far from initialisation.
    """

    name: str
    shape: Shape
    role: Role = "parameter"
    exact: Exact | None = None
    uniform: Uniform | None = None
    far: Far | None = None
    gaussian: str | None = None  # who else draws it from a Gaussian, if anybody does


@dataclass(frozen=True)
class Variant:
    """One adapter method, as the references agree on it."""

    id: str
    title: str
    paper: str
    equation: str
    tensors: tuple[Canonical, ...]
    has_scale: bool = False
    has_rank: bool = True
    has_dropout: bool = False
    refuses_dtypes: tuple[str, ...] = ()  # base dtypes that the reference of record refuses
    guards_norms: bool = False  # the reference of record keeps norms away from zero
    modes: tuple[str, ...] = ()  # boolean fields of AdapterSpec that this variant has
    starts_at_identity: Callable[[AdapterSpec], bool] = lambda spec: True
    in_domain: Callable[[int, int, AdapterSpec], bool] = lambda out, in_, spec: True
    is_singular: Callable[[Mapping[str, Tensor], AdapterSpec], bool] = lambda values, spec: False
    # What a right implementation may not offer.
    may_refuse: Callable[[AdapterSpec], bool] = lambda spec: False
    of_record: dict[str, str] = field(default_factory=dict)  # aspect -> reference, where not PEFT

    def tensor(self, name: str) -> Canonical | None:
        """The canonical tensor of that name, or None."""
        return next((t for t in self.tensors if t.name == name), None)


def _normal(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _factor(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    # s·BA has entries of order one whatever α and r: a contribution neither lost in the base nor drowning it.
    return _normal(shape, spec, g) * (abs(paper.scale(spec)) * math.sqrt(spec.rank)) ** -0.5


def _vectors(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    drawn = _normal(shape, spec, g)
    # In one dimension a vector is one number, and reflections divide by its square.
    return drawn + drawn.sign() / 4


def _near_zero(values: Mapping[str, Tensor], spec: AdapterSpec) -> bool:
    """Whether a column of U is so short that I − 2uuᵀ/‖u‖² depends on how it is computed."""
    U = values.get("U")
    if U is None or U.dim() != 2 or U.numel() == 0:
        return False
    norms = torch.linalg.vector_norm(U, dim=0)
    short = (norms > 0) & (norms < 0.02 * norms.max())  # a zero vector is no accident of the draw
    return bool(short.any() or (U.shape[0] == 1 and 0 < norms.max() < 0.02))


def _magnitude(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    sign = torch.randint(0, 2, shape, generator=g, dtype=torch.float64) * 2 - 1
    return sign * (torch.rand(shape, generator=g, dtype=torch.float64) * 3 + 0.5)


def _gate(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    sign = torch.randint(0, 2, shape, generator=g, dtype=torch.float64) * 2 - 1
    return sign * (torch.rand(shape, generator=g, dtype=torch.float64) * 2 + 0.25)


def _strength(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64) * 4 + 2


def _zeros_like_b(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.zeros(W.shape[0], spec.rank, dtype=W.dtype)


def _ones_like_gate(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.ones(W.shape[1 if spec.feedforward else 0], dtype=W.dtype)


KAIMING = Uniform(lambda out, in_, spec: 1 / math.sqrt(in_))  # kaiming_uniform_(a=√5) on (r, in)
REFLECTIONS = Uniform(lambda out, in_, spec: 1 / math.sqrt(max(spec.rank // 2, 1)), columns_paired=True)

A = Canonical("A", lambda out, in_, spec: (spec.rank, in_), uniform=KAIMING, far=_factor)
GAUSSIAN_A = dataclasses.replace(
    A, gaussian='the LoRA paper (§4.1, a random Gaussian) and PEFT\'s `init_lora_weights="gaussian"`'
)
B = Canonical("B", lambda out, in_, spec: (out, spec.rank), exact=_zeros_like_b, far=_factor)

LORA = Variant(
    "lora",
    "LoRA",
    "arXiv 2106.09685v2",
    "y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ",
    (GAUSSIAN_A, B),
    has_scale=True,
    has_dropout=True,
)

PISSA = Variant(
    "pissa",
    "PiSSA",
    "arXiv 2404.02948v4",
    "y = x (W_res + (α/r) B A)ᵀ + b, with A, B from the r largest singular triples and W_res = W − (α/r) B A",
    (
        Canonical("A", A.shape, far=_factor),
        Canonical("B", B.shape, far=_factor),
        Canonical("W", lambda out, in_, spec: (out, in_), role="base"),
    ),
    has_scale=True,
    has_dropout=True,
    refuses_dtypes=("float64",),
    in_domain=lambda out, in_, spec: spec.rank <= min(out, in_),
)

DORA = Variant(
    "dora",
    "DoRA",
    "arXiv 2402.09353",
    "y = x (diag(m / ‖V‖_row) V)ᵀ + b, V = W + (α/r) B A, ‖V‖ constant under differentiation",
    (
        GAUSSIAN_A,
        B,
        Canonical(
            "m",
            lambda out, in_, spec: (out,),
            exact=lambda W, spec: torch.linalg.vector_norm(W, dim=1),
            far=_magnitude,
        ),
    ),
    has_scale=True,
    has_dropout=True,
)

IA3 = Variant(
    "ia3",
    "(IA)³",
    "arXiv 2205.05638v2",
    "y = l ⊙ (x Wᵀ + b); feed-forward: y = (x ⊙ l) Wᵀ + b",
    (
        Canonical(
            "l",
            lambda out, in_, spec: (in_ if spec.feedforward else out,),
            exact=_ones_like_gate,
            far=_gate,
        ),
    ),
    has_rank=False,
    modes=("feedforward",),
)

HRA = Variant(
    "hra",
    "HRA",
    "arXiv 2405.17484v3",
    "y = x (W H₁ H₂ … H_r)ᵀ + b, H_i = I − 2 u_i u_iᵀ / ‖u_i‖²; Gram-Schmidt: y = x (W (I − 2QQᵀ))ᵀ + b",
    (Canonical("U", lambda out, in_, spec: (in_, spec.rank), uniform=REFLECTIONS, far=_vectors),),
    is_singular=_near_zero,
    modes=("gram_schmidt",),
    starts_at_identity=lambda spec: not spec.gram_schmidt and spec.rank % 2 == 0,
    # Gram-Schmidt of more columns than dimensions divides by rounding noise in every reference.
    in_domain=lambda out, in_, spec: spec.rank <= in_ if spec.gram_schmidt else spec.rank % 2 == 0,
    # No odd rank starts at the identity, with Gram-Schmidt or without.
    may_refuse=lambda spec: spec.rank % 2 == 1,
)

DELORA = Variant(
    "delora",
    "DeLoRA",
    "arXiv 2503.18225v2",
    "y = x Wᵀ + b + (λ/r) (drop(x) ⊙ ‖W‖_col) Aᵀ Ξ Bᵀ, Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)",
    (
        A,
        Canonical("B", B.shape, exact=_zeros_like_b, far=_normal),
        Canonical(
            "lambda",
            lambda out, in_, spec: (1,),
            exact=lambda W, spec: torch.full((1,), spec.lambda0, dtype=W.dtype),
            far=_strength,
        ),
        Canonical(
            "w_norm",
            lambda out, in_, spec: (in_,),
            role="buffer",
            exact=lambda W, spec: torch.linalg.vector_norm(W, dim=0),
        ),
    ),
    guards_norms=True,
    has_dropout=True,
)

VARIANTS: dict[str, Variant] = {v.id: v for v in (LORA, PISSA, DORA, IA3, HRA, DELORA)}

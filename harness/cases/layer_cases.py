"""The cases a claim is tried on: shapes, spec, dtype and a seed, drawn by Hypothesis, never degenerate by accident.

A Case is plain data, so a failing one shrinks to the smallest shapes and prints in one line; its tensors follow
from it deterministically.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from oracles.plain_linear import plain
from oracles.variants import VARIANTS, Variant

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


# Fields of a spec that a witness has a place for, or shows one by one.
TOLD_ANYWAY = ("variant", "rank", "alpha", "options")


@dataclass(frozen=True)
class Case:
    """One layer and one input. ``batch``: the leading dimensions of x.

    ``spread``: entries of x span 1e-3 to 1e3; ``weight_scale``: the base weight times that; ``pruned``: every third
    column of it is zero.
    """

    spec: AdapterSpec
    in_features: int
    out_features: int
    bias: bool = False
    batch: tuple[int, ...] = (3,)
    dtype: str = "float32"
    seed: int = 0
    spread: bool = False
    weight_scale: float = 1.0
    pruned: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.spec.variant]

    def generator(self, stream: int) -> torch.Generator:
        """A generator of this case's own; ``stream`` keeps base, input and parameters independent."""
        return torch.Generator().manual_seed(self.seed * 8 + stream)

    @cached_property
    def weight(self) -> Tensor:
        """W (out, in), entries of order 1/√in, rounded to the case's dtype; returned in that dtype."""
        return self._drawn_weight()

    def _drawn_weight(self) -> Tensor:
        W = torch.randn(self.out_features, self.in_features, generator=self.generator(0), dtype=torch.float64)
        W = W * (self.weight_scale / self.in_features**0.5)
        if self.pruned:
            W[:, ::3] = 0
        return W.to(self.torch_dtype)

    @cached_property
    def bias_vector(self) -> Tensor | None:
        """b (out,), or None."""
        if not self.bias:
            return None
        b = torch.randn(self.out_features, generator=self.generator(1), dtype=torch.float64)
        return (b + b.sign() / 2).to(self.torch_dtype)  # no entry near zero: a lost bias must show

    @property
    def x(self) -> Tensor:
        """x (*batch, in) in the case's dtype; a fresh copy each time, in case who gets it writes into it."""
        return self.input.clone()

    @cached_property
    def input(self) -> Tensor:
        """The one x that :attr:`x` copies."""
        shape = (*self.batch, self.in_features)
        x = torch.randn(shape, generator=self.generator(2), dtype=torch.float64)
        if self.spread:
            x = x * 10 ** (torch.rand(shape, generator=self.generator(2), dtype=torch.float64) * 6 - 3)
        return x.to(self.torch_dtype)

    @cached_property
    def cotangent(self) -> Tensor:
        """G = ∂L/∂y (*batch, out): the loss is ⟨G, y⟩."""
        shape = (*self.batch, self.out_features)
        return torch.randn(shape, generator=self.generator(3), dtype=torch.float64).to(self.torch_dtype)

    def base(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A fresh ``nn.Linear`` with this case's weight and bias (same values in any wider ``dtype``)."""
        return plain(self.weight, self.bias_vector, dtype or self.torch_dtype)

    def far(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values far from initialisation for those canonical tensors that have such, in float64."""
        drawn = {}
        for stream, tensor in enumerate(self.variant.tensors):
            if tensor.far is not None:
                shape = tensor.shape(self.out_features, self.in_features, self.spec)
                drawn[tensor.name] = tensor.far(shape, self.spec, self.generator(4 + stream % 4))
        return {name: value for name, value in drawn.items() if name in names}

    def but(self, **changes: Any) -> Self:
        """This case with fields, or fields of its spec, replaced."""
        own = {k: v for k, v in changes.items() if k in Case.__dataclass_fields__}
        spec = {k: v for k, v in changes.items() if k not in own}
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, **spec), **own)

    @property
    def has_a_value(self) -> bool:
        """Whether the method has a value at these sizes, in these modes: elsewhere rounding decides.

        A rank that a right library may refuse has one.
        """
        plain = not any(getattr(self.spec, mode) for mode in self.variant.modes)
        inside = self.variant.in_domain(self.out_features, self.in_features, self.spec)
        return inside or (plain and self.variant.may_refuse(self.spec))

    def describe(self) -> dict[str, Any]:
        """The case in plain values, for a witness."""
        defaults = AdapterSpec(self.spec.variant)
        names = [f.name for f in dataclasses.fields(AdapterSpec) if f.name not in TOLD_ANYWAY]
        more = {name: getattr(self.spec, name) for name in names}
        more = {name: value for name, value in more.items() if value != getattr(defaults, name)}
        options = {o.name: o for o in self.variant.options}
        more |= {n: v for n, v in self.spec.options.items() if n not in options or v != options[n].default}
        return {
            "in": self.in_features,
            "out": self.out_features,
            "rank": self.spec.rank,
            "alpha": self.spec.alpha,
            "dtype": self.dtype,
            "bias": self.bias,
            "batch": list(self.batch),
            "seed": self.seed,
            **more,
            **{name: getattr(self, name) for name in VALUES if getattr(self, name) != VALUES[name]},
        }


# How a case's values are other than ordinary, and what ordinary is.
VALUES: dict[str, Any] = {"spread": False, "weight_scale": 1.0, "pruned": False}


@dataclass(frozen=True)
class Domain:
    """What a check wants its cases drawn from; the defaults suit most."""

    dtypes: tuple[str, ...] = ("float32", "float64")
    batches: tuple[tuple[int, ...], ...] = ((2,), (1,), (5,), (2, 3))
    sizes: tuple[int, int] = (1, 9)
    ranks: tuple[int, int] = (1, 8)
    alphas: tuple[float, ...] = (3.0, 8.0, 1.0, 0.5, 16.0)
    dropout: float = 0.0
    biases: tuple[bool, ...] = (False, True)
    tall: bool = False  # out ≥ in and rank ≥ in: the contribution determines its input
    mode: str | None = None
    square: bool = (
        False  # a square layer in every profile, as the claims have whose number of cases is the profile's
    )
    strategy: Callable[[Variant], st.SearchStrategy[Any]] | None = (
        None  # cases of its own kind, as whole models
    )


def cases(variant: Variant, domain: Domain) -> st.SearchStrategy[Any]:
    """Cases of ``variant``: mostly out ≠ in, alpha ≠ rank, rank within the variant's domain or above min."""
    return _layers(variant, domain) if domain.strategy is None else domain.strategy(variant)


def among(values: Iterable[Any]) -> st.SearchStrategy[Any]:
    """``st.sampled_from``, made once: Hypothesis looks through every strategy that is new to it, at each draw."""
    given = tuple(values)
    return _among(given, tuple(map(type, given)))  # 1 is True, and 1.0, to a cache


@functools.lru_cache(maxsize=1024)
def _among(values: tuple[Any, ...], types: tuple[type, ...]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def _layers(draw: st.DrawFn, variant: Variant, domain: Domain) -> Case:
    """One layer's case; made a strategy once, since Hypothesis reads the source of what it makes one of."""
    in_features = draw(st.integers(*domain.sizes), label="in")
    out_features = draw(st.integers(*domain.sizes), label="out")
    if domain.tall:
        out_features = max(in_features, out_features)
    # Non-square, but for one case in four: code that guesses a layout from the shapes fails at squares only.
    if draw(among((False, False, False, True))):
        in_features = out_features
    elif in_features == out_features:
        out_features += 1
    rank = _rank(draw, variant, domain, out_features, in_features)
    alpha = draw(among(a for a in domain.alphas if a != rank))
    spec = AdapterSpec(variant.id, rank=rank, alpha=alpha, dropout=domain.dropout)
    for option in (o for o in variant.options if len(o.values) > 1):
        spec = option.put(spec, draw(among(option.values)))
    if domain.mode:
        spec = variant.option(domain.mode).put(spec, True)
    dtypes = allowed_dtypes(variant, domain)
    return Case(
        spec,
        in_features,
        out_features,
        draw(among(domain.biases)),
        draw(among(domain.batches)),
        draw(among(dtypes)),
        draw(st.integers(0, 2**16)),
    )


def allowed_dtypes(variant: Variant, domain: Domain) -> tuple[str, ...]:
    """The dtypes of a domain in which the variant can be asked."""
    # The reference refuses to factorise in float64 where it says so; those cases belong to the dtype checks.
    refused = variant.refuses_dtypes if len(domain.dtypes) > 1 else ()
    return tuple(d for d in domain.dtypes if d not in refused)


def _rank(draw: st.DrawFn, variant: Variant, domain: Domain, out: int, in_: int) -> int:
    spec = AdapterSpec(variant.id)
    if domain.mode:
        spec = variant.option(domain.mode).put(spec, True)
    low, high = domain.ranks
    if domain.tall:
        low, high = in_, in_ + 1
    allowed = [
        r for r in range(low, high + 1) if variant.in_domain(out, in_, dataclasses.replace(spec, rank=r))
    ]
    return draw(among(allowed or [1]), label="rank")

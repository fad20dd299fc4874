"""PiSSA in half precision: how much of a weight its factors keep, what rounding costs, and where the cost arises."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.probe.comparison import Gap, answers, gap
from harness.probe.pretrained import Pretrained
from oracles.implementation import AdapterSpec

HALF = torch.bfloat16


@dataclass(frozen=True)
class Factors:
    """U, S, Vᵀ of a weight that is exact in bfloat16; everything here in float32."""

    W: Tensor
    U: Tensor
    S: Tensor
    Vh: Tensor

    @staticmethod
    def of(weight: Tensor) -> Factors:
        """The factorisation of ``weight``, rounded to bfloat16 first: that is the base a bfloat16 model has."""
        W = weight.detach().to(HALF).float()
        return Factors(W, *torch.linalg.svd(W, full_matrices=False))

    def principal(self, rank: int) -> tuple[Tensor, Tensor]:
        """B (out, r) and A (r, in) with B A the best approximation of W of that rank."""
        root = self.S[:rank].sqrt()
        return self.U[:, :rank] * root, root[:, None] * self.Vh[:rank]

    def effective(self, rank: int, *, residual: bool, factors: bool) -> Tensor:
        """W_res + B A with the residual, the factors or both rounded to bfloat16."""
        B, A = self.principal(rank)
        rest = self.W - B @ A
        if residual:
            rest = rest.to(HALF).float()
        if factors:  # the residual is that of the unrounded factors, as in PEFT
            B, A = B.to(HALF).float(), A.to(HALF).float()
        return rest + B @ A

    def error(self, rank: int, *, residual: bool, factors: bool) -> float:
        """‖W_eff − W‖ / ‖W‖."""
        off = self.effective(rank, residual=residual, factors=factors) - self.W
        return float(torch.linalg.matrix_norm(off) / torch.linalg.matrix_norm(self.W))

    def kept(self, rank: int) -> float:
        """The share of ‖W‖² in the principal part."""
        squares = self.S.double().square()
        return float(squares[:rank].sum() / squares.sum())


@dataclass(frozen=True)
class Sweep:
    """One layer over ranks: the error of the effective weight with float32 and with bfloat16 factors."""

    layer: str
    shape: tuple[int, int]
    singular: list[float]
    ranks: list[int]
    kept: list[float]
    wide: list[float]  # factors float32, residual bfloat16
    narrow: list[float]  # both bfloat16


def sweep(layer: str, factors: Factors) -> Sweep:
    """Ranks 1, 2, 4, … up to the full rank."""
    full = len(factors.S)
    ranks = [r for i in range(12) if (r := 2**i) < full] + [full]
    return Sweep(
        layer,
        (factors.W.shape[0], factors.W.shape[1]),
        factors.S.tolist(),
        ranks,
        [factors.kept(r) for r in ranks],
        [factors.error(r, residual=True, factors=False) for r in ranks],
        [factors.error(r, residual=True, factors=True) for r in ranks],
    )


@dataclass(frozen=True)
class Part:
    """One source of PiSSA's error at the logits, alone."""

    source: str
    gap: Gap


SOURCES = (
    ("weights: residual and factors in float32", {"residual": False, "factors": False}),
    ("weights: residual rounded to bfloat16, factors float32", {"residual": True, "factors": False}),
    ("weights: residual and factors rounded to bfloat16", {"residual": True, "factors": True}),
)


def parts(given: Pretrained, names: Iterable[str], spec: AdapterSpec) -> tuple[list[Part], list[Sweep]]:
    """Where the logits' error comes from, source by source, and the sweeps of three layers.

    The weights' share is measured in float32 arithmetic; the arithmetic's share on the base without any adapter.
    """
    half = copy.deepcopy(given.model).to(HALF)
    rounded = answers(half, given.prompt)
    wide = half.float()
    exact = answers(wide, given.prompt)
    found = [Part("arithmetic: the base itself in bfloat16, no adapter", gap(rounded, exact))]
    names = list(names)
    factored = {name: Factors.of(wide.get_submodule(name).weight) for name in names}  # type: ignore[arg-type]
    for source, rounding in SOURCES:
        for name, factors in factored.items():
            _set(wide.get_submodule(name), factors.effective(spec.rank, **rounding))
        found.append(Part(source, gap(answers(wide, given.prompt), exact)))
    chosen = [names[0], names[len(names) // 2], names[-1]]
    return found, [sweep(name, factored[name]) for name in dict.fromkeys(chosen)]


@torch.no_grad()
def _set(layer: nn.Module, weight: Tensor) -> None:
    layer.weight.copy_(weight)  # type: ignore[operator]

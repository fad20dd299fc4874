"""What an adapter does to one tensor of its base, in float64, a block of rows at a time.

A tensor is looked at as a matrix: a weight (out, in, ...) as (out, in * ...), stacked experts (E, a, b) as
(E * a, b), a bias (n,) as (n, 1). Every update is a function of rows of that matrix, so that a checkpoint larger
than the memory can be asked; an update that needs the whole weight first (norms over columns, a factorisation)
sees it once in ``prepare``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Blocks = Callable[
    [], Iterator[tuple[int, Tensor]]
]  # the base's rows: (first row, rows (n, columns) in float64)


class Update(ABC):
    """``W' = f(W)``, row by row."""

    def prepare(self, blocks: Blocks) -> None:  # noqa: B027
        """See the whole base once; nothing to do for most."""

    @abstractmethod
    def rows(self, W: Tensor, start: int) -> Tensor:
        """The rows ``start ...`` of W' (n, columns) from the same rows of W, float64."""

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns that a tensor of ``shape`` is looked at with."""
        columns = 1
        for size in shape[1:]:
            columns *= size
        return shape[0], columns

    def apply(self, W: Tensor) -> Tensor:
        """The whole W' for a W of any shape, float64."""
        rows = W.double().reshape(self.matrix(tuple(W.shape)))
        self.prepare(lambda: iter([(0, rows)]))
        return self.rows(rows, 0).reshape(W.shape)


@dataclass
class LowRank(Update):
    """``W + left right``: left (rows, k), right (E, k, columns), row i with right[i // (rows / E)].

    One expert is the plain case; LoRA Eq. (3) has left = (α/r) B and right = A.
    """

    left: Tensor
    right: Tensor
    experts_view: bool = False

    def __post_init__(self) -> None:
        self.left = self.left.double()
        self.right = self.right.double() if self.right.dim() == 3 else self.right.double()[None]

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Stacked experts keep their last dimension as the columns."""
        if self.experts_view:
            return shape[0] * shape[1], shape[2]
        return super().matrix(shape)

    def delta(self, start: int, stop: int) -> Tensor:
        """Rows ``start ... stop - 1`` of ΔW."""
        size = self.left.shape[0] // self.right.shape[0]
        parts, at = [], start
        while at < stop:
            expert = at // size
            end = min(stop, (expert + 1) * size)
            parts.append(self.left[at:end] @ self.right[expert])
            at = end
        return torch.cat(parts) if parts else self.left.new_zeros(0, self.right.shape[2])

    def rows(self, W: Tensor, start: int) -> Tensor:
        """``W + ΔW``."""
        return W + self.delta(start, start + W.shape[0])

    def times(self, factor: float) -> LowRank:
        """The same update, ``factor`` times as large."""
        return LowRank(self.left * factor, self.right, self.experts_view)

    def norm(self) -> float:
        """‖ΔW‖ (Frobenius), from the factors alone."""
        size = self.left.shape[0] // self.right.shape[0]
        left = self.left.reshape(self.right.shape[0], size, -1)
        inner = (left.mT @ left) * (self.right @ self.right.mT)
        return float(inner.sum().clamp(min=0).sqrt())


@dataclass
class Residual(LowRank):
    """PiSSA: the principal part of W, of the adapter's rank, is taken out first (Eq. (4) and (5)).

    ``W' = W - U_r S_r V_rᵀ + left right``. The factorisation is W's own, so that α does not matter to it.
    """

    principal: int = 0

    def prepare(self, blocks: Blocks) -> None:
        """Factorise the base."""
        W = torch.cat([rows for _, rows in blocks()])
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        self._out = (U[:, : self.principal] * S[: self.principal], Vh[: self.principal])
        self._singular = S

    def amplification(self) -> float:
        """How much more than one rounding of W the principal part can feel: two singular values that are near."""
        S, r = self._singular, self.principal
        return float(S[r - 1] / (S[r - 1] - S[r])) if 0 < r < len(S) else 1.0

    def residual(self, W: Tensor, start: int) -> Tensor:
        """Rows of ``W_res``."""
        left, right = self._out
        return W - left[start : start + W.shape[0]] @ right

    def rows(self, W: Tensor, start: int) -> Tensor:
        """``W_res + left right``."""
        return super().rows(self.residual(W, start), start)

    def times(self, factor: float) -> Residual:
        """The same residual, ``left right`` times ``factor``."""
        return Residual(self.left * factor, self.right, self.experts_view, self.principal)


@dataclass
class Magnitude(Update):
    """DoRA Eq. (5): ``m (W + ΔW) / ‖W + ΔW‖``, one norm per row of the matrix or per column of it."""

    low: LowRank
    magnitude: Tensor
    by_columns: bool = False
    _squares: Tensor | None = field(default=None, repr=False)

    def prepare(self, blocks: Blocks) -> None:
        """The norms of columns need all rows."""
        if self.by_columns:
            self._squares = sum(
                (self.low.rows(rows, at).square().sum(0) for at, rows in blocks()),
                start=torch.zeros((), dtype=torch.float64),
            )

    def rows(self, W: Tensor, start: int) -> Tensor:
        """``g (W + ΔW)``."""
        V, m = self.low.rows(W, start), self.magnitude.double().flatten()
        if self.by_columns:
            assert self._squares is not None, "prepare comes first"
            return V * (m / self._squares.sqrt())
        return V * (m[start : start + W.shape[0]] / torch.linalg.vector_norm(V, dim=1))[:, None]


@dataclass
class Gate(Update):
    """(IA)³ §3.3: rows or columns of the matrix times l."""

    l: Tensor
    by_columns: bool = False

    def rows(self, W: Tensor, start: int) -> Tensor:
        """``l ⊙ W`` or ``W ⊙ l``."""
        gate = self.l.double().flatten()
        if not self.by_columns:
            return W * gate[start : start + W.shape[0], None]
        # A convolution's columns are (in, height, width): one gate for each input's kernel.
        return W * gate.repeat_interleave(W.shape[1] // gate.numel())


@dataclass
class Reflect(Update):
    """HRA Eq. (1): ``W H₁ H₂ … H_r``, ``H_i = I - 2 u_i u_iᵀ / ‖u_i‖²``, u_i the columns of U (columns, r)."""

    U: Tensor
    gram_schmidt: bool = False
    reverse: bool = False

    def amplification(self) -> float:
        """How much more than one rounding of U the product can feel: vectors that all but cancel in Gram-Schmidt."""
        if not self.gram_schmidt:
            return 1.0
        U = self.U.double()
        left = (orthonormal(U) * U).sum(0).abs()
        return float((torch.linalg.vector_norm(U, dim=0) / left.clamp(min=1e-300)).max())

    def rows(self, W: Tensor, start: int) -> Tensor:
        """Every row meets H₁ first: ``(w H₁) H₂ …``."""
        U = orthonormal(self.U.double()) if self.gram_schmidt else self.U.double()
        order = range(U.shape[1])
        for i in reversed(order) if self.reverse else order:
            u = U[:, i]
            W = W - 2 * (W @ u)[:, None] * u / (u @ u)
        return W


def orthonormal(U: Tensor) -> Tensor:
    """Gram-Schmidt on the columns of U, first to last (HRA §3.2)."""
    columns: list[Tensor] = []
    for i in range(U.shape[1]):
        u = U[:, i]
        for q in columns:
            u = u - (q @ u) * q
        columns.append(u / torch.linalg.vector_norm(u))
    return torch.stack(columns, dim=1)


@dataclass
class Replace(Update):
    """The file holds the tensor itself (modules_to_save, trained biases)."""

    value: Tensor

    def rows(self, W: Tensor, start: int) -> Tensor:
        """The file's rows."""
        new = self.value.double().reshape(self.matrix(tuple(self.value.shape)))
        return new[start : start + W.shape[0]]


@dataclass
class Unchanged(Update):
    """Nothing is applied."""

    like: Update | None = None

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """As the update that is missing."""
        return self.like.matrix(shape) if self.like else super().matrix(shape)

    def rows(self, W: Tensor, start: int) -> Tensor:
        """W."""
        return W


@dataclass
class Linear(Update):
    """``W + factor (f(W) - W)``: the update of another one, so many times."""

    of: Update
    factor: float

    def prepare(self, blocks: Blocks) -> None:
        """What the other one needs."""
        self.of.prepare(blocks)

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """As the other one."""
        return self.of.matrix(shape)

    def rows(self, W: Tensor, start: int) -> Tensor:
        """The change times the factor."""
        return W + self.factor * (self.of.rows(W, start) - W)


@dataclass
class Twice(Update):
    """``f(f(W))``: merged, and merged again."""

    first: Update
    second: Update

    def prepare(self, blocks: Blocks) -> None:
        """The second sees what the first leaves."""
        self.first.prepare(blocks)
        self.second.prepare(lambda: ((at, self.first.rows(rows, at)) for at, rows in blocks()))

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """As the first."""
        return self.first.matrix(shape)

    def rows(self, W: Tensor, start: int) -> Tensor:
        """Both in turn."""
        return self.second.rows(self.first.rows(W, start), start)


@dataclass
class Transposed(Update):
    """The numbers of ΔW in the order of ΔWᵀ: transposed where the weight is square, else misread row by row."""

    low: LowRank

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """As the update itself."""
        return self.low.matrix(shape)

    def rows(self, W: Tensor, start: int) -> Tensor:
        """The entries that a flat read of each expert's ΔWᵀ puts into these rows."""
        experts, columns = self.low.right.shape[0], W.shape[1]
        size = self.low.left.shape[0] // experts
        out, at = [], start
        while at < start + W.shape[0]:
            expert = at // size
            end = min(start + W.shape[0], (expert + 1) * size)
            first, last = (at - expert * size) * columns, (end - expert * size) * columns
            block = self._flat(expert, size, first, last)
            out.append(block.reshape(-1, columns))
            at = end
        return W + torch.cat(out)

    def _flat(self, expert: int, size: int, first: int, last: int) -> Tensor:
        """Entries ``first ... last - 1`` of the flat ΔWᵀ (columns, size) of one expert."""
        top, bottom = first // size, -(-last // size)
        left = self.low.left[expert * size : (expert + 1) * size]
        part = self.low.right[expert].mT[top:bottom] @ left.mT
        return part.flatten()[first - top * size : last - top * size]

"""How a merge rounds: the most that it can be off by, and the bits that each plausible order of it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.vectors.update import Linear, LowRank, Magnitude, Reflect, Residual, Unchanged, Update

SINGLE = torch.finfo(torch.float32).eps
EXPONENT = 0x7FF << 52  # the exponent's bits of a float64
PRODUCT = 16  # float32 roundings of the factors' product and of what is done with it
FACTORISATION = 64  # of a singular value decomposition, in units of the typical entry


@dataclass(frozen=True)
class Dtypes:
    """Of the base, of the adapter's factors and of the merged tensor."""

    base: torch.dtype
    adapter: torch.dtype
    merged: torch.dtype

    @property
    def coarsest(self) -> float:
        """The machine epsilon of what the arithmetic may have been done in."""
        return max(torch.finfo(self.base).eps, torch.finfo(self.adapter).eps, SINGLE)


def is_additive(update: Update) -> bool:
    """Whether W is only added to: then it is rounded once, at the end."""
    return isinstance(update, LowRank | Linear | Unchanged)


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of two neighbouring numbers of ``dtype`` at each float64 value; zero for float64."""
    info = torch.finfo(dtype)
    if dtype == torch.float64:
        return torch.zeros_like(values)
    # A float64 without its mantissa is the power of two below it; much quicker than frexp.
    power = values.abs().clamp(min=info.smallest_normal).view(torch.int64) & EXPONENT
    return power.view(torch.float64) * info.eps


def bound(W: Tensor, merged: Tensor, dtypes: Dtypes, update: Update) -> Tensor:
    """How far from the exact ``merged`` (float64) a right merge of ``W`` can lie, entry by entry."""
    delta = merged - W
    found = ulp(merged, dtypes.merged) + PRODUCT * SINGLE * (W.abs() + delta.abs() + _typical(delta))
    for dtype in {dtypes.base, dtypes.adapter} - {torch.float64, torch.float32}:
        found = found + ulp(delta, dtype)
    if dtypes.base != dtypes.merged:
        found = found + ulp(merged, dtypes.base)
    if torch.finfo(dtypes.adapter).eps > SINGLE:
        # The product of the factors may itself have been formed in the adapter's dtype.
        found = found + 4 * dtypes.coarsest * (delta.abs() + _typical(delta))
    share = arithmetic(update, dtypes)
    return found + share * (W.abs() + _typical(W)) if share else found


def _typical(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) / max(values.numel(), 1) ** 0.5


def arithmetic(update: Update, dtypes: Dtypes) -> float:
    """Roundings of W itself on the way, as a share of its size."""
    if isinstance(update, Residual):
        return FACTORISATION * SINGLE * update.amplification() + torch.finfo(dtypes.base).eps
    if isinstance(update, Reflect):
        return 4 * update.U.shape[1] * max(torch.finfo(dtypes.adapter).eps, SINGLE) * update.amplification()
    if isinstance(update, Magnitude):
        return 2 * dtypes.coarsest
    return 0.0 if is_additive(update) else dtypes.coarsest


def replays(W: Tensor, merged: Tensor, dtypes: Dtypes, between: Tensor | None = None) -> dict[str, Tensor]:
    """The merged tensor in its dtype, for each order of rounding that libraries use; W and merged float64.

    Rounded once; rounded to the base's dtype first; ΔW rounded to the base's or the adapter's dtype before it is
    added; everything in float32; ``between``, a weight that is stored in the base's dtype half way.
    """
    delta, single = merged - W, torch.float32
    in_base = W.to(dtypes.base) + delta.to(single).to(dtypes.base)
    cast = delta.to(single).to(dtypes.adapter).to(single)
    found = {
        "once": merged.to(dtypes.merged),
        "through the base's dtype": merged.to(dtypes.base).to(dtypes.merged),
        "ΔW in the base's dtype": in_base.to(dtypes.merged),
        "ΔW in the adapter's dtype": (W.to(single) + cast).to(dtypes.base).to(dtypes.merged),
        "in float32": (W.to(single) + delta.to(single)).to(dtypes.base).to(dtypes.merged),
    }
    if between is not None:
        stored = between.to(dtypes.base).double() + (merged - between)
        found["the residual stored first"] = stored.to(dtypes.base).to(dtypes.merged)
    return found

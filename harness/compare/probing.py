"""What a layer computes, found by calling it: its effective weight, its contribution, and whether an option acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.abilities import abilities_of
from harness.compare.context import Context
from harness.compare.layer import SUBJECTS, Layer, WrongType, adapt
from harness.compare.life_model import left_by
from harness.compare.thresholds import MASK_ENTRY, MASK_SHARE, NOTHING_DROPPED, SAME_FUNCTION, Closeness
from oracles.implementation import Implementation
from oracles.seeding import seed_torch


def far_layer(context: Context, case: Case) -> Layer:
    """The subject on a fresh base of ``case``, at parameters far from the start."""
    layer = context.layer(case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    return layer


def beneath(context: Context, case: Case, layer: Layer) -> Tensor:
    """The weight that the adapter acts on; of a PiSSA that keeps no residual, what its start leaves of W."""
    values, W = layer.values(), case.weight.double()
    if case.variant.base is not None and case.variant.base.name not in values:
        values |= left_by(W, context.layer(case).values(), case.spec)
    return case.variant.weight_beneath(W, values)


def plain_layer(found: Any, method: str) -> nn.Linear:
    """What ``merge`` or ``detach`` returned. Raises WrongType if it has no weight: it is the subject file's choice."""
    if not isinstance(getattr(found, "weight", None), Tensor):
        raise WrongType(f"{method} returned {type(found).__name__}, expected an nn.Linear")
    return found


def effective(layer: Layer, case: Case, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(W' (out, in), b' (out,)) of a layer, in float64, by its outputs at the identity and at zero."""
    dtype = dtype or case.torch_dtype
    with torch.no_grad():
        zero = by_rows(layer, case, torch.zeros(1, case.in_features, dtype=dtype)).double()[0]
        eye = by_rows(layer, case, torch.eye(case.in_features, dtype=dtype)).double()
    return (eye - zero).mT, zero


def by_rows(layer: Layer, case: Case, rows: Tensor) -> Tensor:
    """What the layer answers rows (n, in): (n, out). Who takes no matrix gets them in as many dimensions as x has."""
    subject = SUBJECTS.get(layer.who)
    flat = subject is None or 2 in abilities_of(subject, case.spec.variant).inputs
    if not flat and not case.batch:
        return torch.stack([layer(row) for row in rows])
    leading = () if flat else (1,) * (len(case.batch) - 1)
    y = layer(rows.reshape(*leading, *rows.shape))
    return y.reshape(*y.shape[len(leading) :]) if y.shape[: len(leading)] == leading else y


def without_adapter(case: Case, values: dict[str, Tensor]) -> Tensor:
    """x W₀ᵀ + b in float64, W₀ the weight that the adapter adds to (PiSSA: the residual)."""
    W = case.variant.weight_beneath(case.weight.double(), values)
    y = case.x.double() @ W.mT
    return y if case.bias_vector is None else y + case.bias_vector.double()


def coefficient(actual: Tensor, exact: Tensor) -> float:
    """``⟨actual, exact⟩ / ⟨exact, exact⟩``."""
    return float((actual * exact).sum() / exact.square().sum())


def alike(actual: Tensor, expected: Tensor, within: Closeness) -> bool:
    """Whether every entry of ``actual`` is within the bound of the one in ``expected``."""
    return torch.allclose(actual, expected, rtol=within.relative, atol=within.absolute)


def is_the_bases(output: Tensor, case: Case) -> bool:
    """Whether an output for the case's x is its base's."""
    with torch.no_grad():
        return alike(output.double(), case.base()(case.x).double(), NOTHING_DROPPED)


def masked(layer: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> Tensor:
    """One output in the mode that the layer is in, a mask drawn from ``seed``; float64, without a graph."""
    seed_torch(seed)
    with torch.no_grad():
        return layer(x).double()


def kept_factor(factors: Tensor) -> float | None:
    """What entries that are kept are multiplied by, of what each was multiplied by; 0 where none is kept.

    None where they are no mask: some dropped, the others by one factor.
    """
    kept = factors[factors.abs() > MASK_ENTRY]
    factor = float(kept.median()) if kept.numel() else 0.0
    near = (factors.abs() < MASK_ENTRY) | ((factors - factor).abs() < MASK_ENTRY)
    return factor if near.double().mean() >= MASK_SHARE else None


def drops_over_evaluation(who: Implementation, case: Case, *, told: bool = False) -> bool:
    """Whether a fresh adapter over a base in evaluation mode drops entries, far from its start.

    ``told``: whether it is put into evaluation mode once more before it is called.
    """
    base = case.base().eval()
    seed_torch(case.seed)
    layer = adapt(who, base, case.spec)
    layer.write(case.far(dict.fromkeys(layer.names)))
    if told:
        layer.train(False)
    with torch.no_grad():
        return not rounding.same_values(layer(case.x), layer(case.x))


def mode_is_ignored(context: Context, case: Case, modes: Sequence[str] = ()) -> bool:
    """Whether the case's mode changes neither the slots' shapes nor, at equal parameters, the output.

    ``modes``: those that may be on; of itself, those of the variant that are asked on their own.
    """
    without = case.but(**dict.fromkeys(modes or context.variant.modes, False))
    sizes = {"in_features": 6, "out_features": 4, "rank": 2, "batch": context.abilities.batch((3,))}
    wide = [c.but(**sizes) for c in (case, without)]
    # One layer after the other: making the second may change the first, which is another fault.
    (first, with_mode), (second, plain) = (_drawn_and_answered(context, c) for c in wide)
    return first == second and bool((with_mode - plain).abs().max() < SAME_FUNCTION)


def _drawn_and_answered(context: Context, case: Case) -> tuple[dict[str, tuple[int, ...]], Tensor]:
    """The slots' shapes and, with every slot drawn anew from one seed, what the layer answers.

    Extra tensors too: a gate that starts at zero would make every mode look alike.
    """
    layer, generator = context.layer(case), case.but(seed=0).generator(4)
    values = layer.values()
    layer.write({n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in values.items()})
    return {n: tuple(v.shape) for n, v in values.items()}, layer(case.x).detach().double()

"""What an implementation computes on a few small cases, quantity by quantity: what a diagnosis compares.

A portrait is taken at given parameters, so that two implementations that share them can be held against each other:
where they start, which tensors train, output and gradients, what dropout does, which dtype comes out. A part that an
implementation does not offer, or in which it raises, is left out: it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import scipy
import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt
from harness.compare.loose_parameters import loose, of_the_base, own_vectors
from oracles.equation import EquationLayer
from oracles.implementation import Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import Canonical
from oracles.variants.record import OWN_OUT, OWN_RANK

Value = Tensor | str
Values = dict[str, Value]
RATE, SEEDS = 0.4, (1, 2)
DRAWS = 24
LAW: dict[str, Any] = {
    "in_features": 48,
    "out_features": 24,
    # No small part of in: a law that knows both sides differs from one that knows in alone. And no third of it, where
    # a bound of 1/√r is one of √(3/in).
    "rank": 12,
    "alpha": 3.0,
    "batch": (2,),
}
AS_SET = "the reference's"
TENSORS = "tensors"  # of a start: their names and shapes


@dataclass(frozen=True)
class Sitting:
    """One implementation on one case, at parameters of ``held`` where it has tensors of their names and shapes.

    ``start``: what another one's tensors were before it was moved there, for forms that keep a copy of their start.
    """

    who: Implementation
    case: Case
    held: Mapping[str, Tensor] | None = None
    start: Mapping[str, Tensor] | None = None

    def layer(self, case: Case | None = None, seed: int = 0) -> Layer:
        """A fresh layer, torch's generator seeded from the case."""
        case = case or self.case
        seed_torch(case.seed + seed)
        return adapt(self.who, case.base(), case.spec)

    def moved(self, case: Case | None = None) -> Layer:
        """A fresh layer at the held parameters, or at its own drawn far from its start."""
        layer = self.layer(case)
        held = self.held if self.held is not None else far_of(layer, self.case)
        layer.write(held)
        write_own(layer, self.case, held)
        if isinstance(layer.module, EquationLayer) and self.start:
            layer.module.started_at(self.start)
        return layer

    def part(self, name: str) -> Values | None:
        """One part of the portrait; None where it is not offered or raises."""
        try:
            return PARTS[name](self)
        except (Unsupported, SubjectRaised, BadAnswer, RuntimeError, ValueError, IndexError):
            return None


def far_of(layer: Layer, case: Case) -> dict[str, Tensor]:
    """Values far from the start for every tensor the layer has, in whatever shape it has it."""
    drawn = {}
    for stream, name in enumerate(layer.names):
        known = case.variant.tensor(name)
        shape, generator = tuple(layer.view(name).shape), case.generator(4 + stream % 4)
        if known is None:
            drawn[name] = torch.randn(shape, generator=generator, dtype=torch.float64) + 2
        elif known.far is not None:
            drawn[name] = known.far(shape, case.spec, generator)
    return drawn | own_of(case)


def own_of(case: Case) -> dict[str, Tensor]:
    """Values far from the start for vectors of an adapter's own, where the catalogue knows what they do."""
    sizes = {OWN_OUT: case.out_features, OWN_RANK: case.spec.rank}
    known = {part.removeprefix("start.") for m in case.variant.mistakes for part in m.parts}
    return {
        name: torch.randn(size, generator=case.generator(stream), dtype=torch.float64)
        for stream, (name, size) in enumerate(sizes.items(), start=9)
        if name in known
    }


@torch.no_grad()
def write_own(layer: Layer, case: Case, held: Mapping[str, Tensor]) -> None:
    """Write such values where the layer has such vectors."""
    named = dict(layer.module.named_parameters())
    for kind, name in own_vectors(layer, case).items():
        if kind in held:
            named[name].copy_(held[kind])


def _start(sitting: Sitting) -> Values:
    """Which tensors there are, and where they and the output start."""
    layer, other, case = sitting.layer(), sitting.layer(seed=1), sitting.case
    found: Values = {TENSORS: ", ".join(f"{n} {tuple(layer.view(n).shape)}" for n in sorted(layer.names))}
    for tensor in case.variant.tensors:
        if tensor.name in layer.names and not (tensor.uniform and tensor.drawn_from == "global"):
            found[f"start of {tensor.name}"] = _start_of(tensor, layer, other, case)
    with torch.no_grad():
        y, again, base = (m(case.x).double() for m in (layer, other, case.base()))
    if _close(y, base) and _close(again, base):  # also where random tensors cancel
        found["output at the start"] = AS_SET
    else:
        drawn = "random" in found.values() or not _close(y, again)
        found["output at the start"] = "random" if drawn else y
    return found


def _start_of(tensor: Canonical, layer: Layer, other: Layer, case: Case) -> Value:
    """In words where words say it all; what a factorisation determines; else the value."""
    value = layer.value(tensor.name)
    if tensor.exact is not None:
        wanted = tensor.exact(case.weight.double(), case.spec)
        if value.shape == wanted.shape and _close(value, wanted):
            return AS_SET
        return value if _close(value, other.value(tensor.name)) else "random"
    if tensor.uniform:  # a key in the spec determines it
        return value if _close(value, other.value(tensor.name)) else "random"
    return torch.linalg.svdvals(value) if tensor.role == "parameter" else value


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= 1e-5 * (float(b.norm()) + 1e-9)


def _law(sitting: Sitting) -> Values:
    """The law of every tensor that the reference draws: log second moment, kurtosis, share of equal columns."""
    # A subject that has no other scale than one is asked at that one.
    unscaled = {"alpha": float(LAW["rank"])} if sitting.case.spec.alpha == sitting.case.spec.rank else {}
    case = sitting.case.but(**LAW | unscaled)
    drawn = [sitting.layer(case, seed) for seed in range(DRAWS)]
    drawn_at_random = [t for t in case.variant.tensors if t.uniform and t.drawn_from == "global"]
    names = [t.name for t in drawn_at_random if t.name in drawn[0].names]
    return {
        f"law of {name}": _features(torch.stack([layer.value(name) for layer in drawn])) for name in names
    }


def _features(draws: Tensor) -> Value:
    if not bool(draws.any()):
        return "zero"
    if torch.equal(draws[0], draws[1]):
        return "the same in every draw"
    entries = draws.flatten().numpy()
    pairs = (
        float((draws[..., 1:] == draws[..., :-1]).all(dim=-2).double().mean()) if draws.dim() == 3 else 0.0
    )
    spread = math.log(float(draws.square().mean()))
    return torch.tensor([spread, float(scipy.stats.kurtosis(entries)) / 2, pairs], dtype=torch.float64)


def _roles(sitting: Sitting) -> Values:
    """Which tensors train, inside the adapter and outside."""
    layer = sitting.layer()
    base, own = (of(layer, sitting.case) for of in (of_the_base, own_vectors))
    kinds = {name: kind for kind, name in own.items()}
    beside = sorted(kinds.get(n, n) for n in loose(layer) if n not in base)
    roles: Values = {
        f"role of {n}": "trained" if layer.raw(n).requires_grad else "not trained" for n in layer.names
    }
    return {
        **roles,
        "trained of the base": ", ".join(sorted(set(base.values()))) or "nothing",
        "trained beside the adapter's tensors": ", ".join(beside) or "nothing",
    }


def _function(sitting: Sitting) -> Values:
    """Output and gradients far from the start, twice (a first step can be lost), and the output in evaluation mode."""
    layer, case = sitting.moved(), sitting.case
    layer.train()
    first = rounding.observe(layer, case, gradients=True)
    found: Values = dict(rounding.observe(layer, case, gradients=True))
    for name, value in first.items():
        later = found[name]
        lost = isinstance(later, Tensor) and bool(later.any()) and not bool(value.any())
        found[f"{name} on the first call"] = "lost" if lost else "there"
    layer.train(False)
    with torch.no_grad():
        return {**found, "output in evaluation mode": layer(case.x).double()}


def _dropout(sitting: Sitting) -> Values:
    """With dropout: outputs under fixed seeds in training mode, their gradients, and the output in evaluation mode."""
    # As many dimensions as the case has: some take no others.
    case = sitting.case.but(dropout=RATE, batch=(*sitting.case.batch[:-1], 8))
    layer = sitting.moved(case)
    layer.train()
    found: Values = {}
    for seed in SEEDS:
        seed_torch(seed)
        for name, value in rounding.observe(layer, case, gradients=True).items():
            found[f"{name} with dropout, seed {seed}"] = value
    layer.train(False)
    seed_torch(0)
    with torch.no_grad():
        return {**found, "output with dropout in evaluation mode": layer(case.x).double()}


def _dtype(sitting: Sitting) -> Values:
    """The dtype of the output over a bfloat16 base."""
    case = sitting.case.but(dtype="bfloat16")
    layer = sitting.layer(case)
    with torch.no_grad():
        return {"dtype of the output": str(layer(case.x).dtype)}


PARTS: dict[str, Callable[[Sitting], Values]] = {
    "start": _start,
    "law": _law,
    "roles": _roles,
    "function": _function,
    "dropout": _dropout,
    "dtype": _dtype,
}
# How far two values of a part may be apart, as a share of the larger: float32 against float32, and, of a law, what six
# standard errors of its features come to.
OUTPUTS = 5e-6
OTHERS = 1e-4  # gradients, whose terms cancel, and factorisations
LAWS = 0.15


def same(a: Value | None, b: Value | None, part: str, quantity: str, scale: float = 0.0) -> bool:
    """Whether two values of one quantity are the same; ``scale``: the size of what cancels in it."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return isinstance(a, str) and isinstance(b, str) and a == b
    if a.shape != b.shape or not torch.equal(torch.isfinite(a), torch.isfinite(b)):
        return False
    a, b = (torch.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0) for t in (a, b))
    if part == "law":
        return float((a - b).abs().max()) <= LAWS
    allowed = OUTPUTS if quantity.startswith("output") and part != "start" else OTHERS
    return float((a - b).norm()) <= allowed * max(float(b.norm()), float(a.norm()), scale)

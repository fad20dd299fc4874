"""What a subject takes at all: dtypes, dimensions of x, alpha, dropout of zero, a bias; found by asking, once.

What it does not take is one missing mode (or, where it raises or answers in another shape, one finding), told by
`scale.specs`, `dtype.taken` and `forward.inputs`; every other question is asked without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from harness.cases.kind_cases import QUANTISERS, KindCase
from harness.cases.layer_cases import DTYPES, Case
from harness.cases.life_cases import LifeCase
from harness.compare import isolation
from harness.compare.layer import BadAnswer, SubjectRaised, adapt, said
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS

Kind = Literal["spec", "dtype", "input"]
How = Literal["not offered", "raised", "wrong shape", "declared"]
# Dropout so small that it drops nothing, for a library that refuses none.
HARDLY_ANY = 1e-7
BATCHES: dict[int, tuple[int, ...]] = {2: (3,), 3: (2, 3), 4: (2, 1, 3), 5: (2, 1, 2, 3)}


@dataclass(frozen=True)
class Lack:
    """One thing that a subject does not take; ``reason``: its own words, or what happened; ``case``: where."""

    kind: Kind
    what: str
    how: How
    reason: str
    case: Case


@dataclass(frozen=True)
class Abilities:
    """What a subject takes of one variant; ``changes``: what every spec is changed in before it is asked."""

    subject: Implementation
    dtypes: frozenset[str]
    inputs: frozenset[int]
    changes: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()
    ordinary: Case | None = None  # a small case that is answered; None where none is
    bias: bool = True  # whether a base layer may have one
    needs_bias: bool = False

    def of(self, kind: Kind) -> tuple[Lack, ...]:
        """The lacks of one kind."""
        return tuple(lack for lack in self.lacks if lack.kind == kind)

    def fitted(self, case: Any) -> Any:
        """A case as the subject can be asked it: of a layer, or (its spec alone) of a whole model."""
        spec = self.spec(case.spec)
        changes: dict[str, Any] = {} if spec == case.spec else {"spec": spec}
        if isinstance(case, Case):
            nearest = {
                "batch": self.batch(case.batch),
                "dtype": self.dtype(case.dtype),
                "bias": self._bias(case),
            }
            if isinstance(case, KindCase):
                nearest["quantiser"] = self.quantiser(case.quantiser)
            if isinstance(case, LifeCase):
                nearest["others"] = tuple(map(self.spec, case.others))
            changes |= {name: value for name, value in nearest.items() if value != getattr(case, name)}
        return dataclasses.replace(case, **changes) if changes else case

    def _bias(self, case: Case) -> bool:
        """Whether the layer has a bias; an embedding and its like have none whatever is needed."""
        wanted = case.bias or (self.needs_bias and not isinstance(case, KindCase))
        return wanted and self.bias

    def dtype(self, name: str) -> str:
        """The dtype itself where the subject takes it, else the finest that it does."""
        taken = [d for d in FINEST_FIRST if d in self.dtypes]
        return name if name in self.dtypes or not taken else taken[0]

    def quantiser(self, name: str) -> str:
        """The way of quantising itself, or the first whose library is where the subject runs."""
        there = [own for own in (name, *QUANTISERS) if own and can_quantise(self.subject, own)]
        return there[0] if name and there else name

    def spec(self, spec: AdapterSpec) -> AdapterSpec:
        """The nearest spec that the subject can express."""
        return changed(self.subject.nearest(spec), self.changes)

    def batch(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """The leading dimensions of x, in a number of dimensions that the subject takes; as many rows."""
        if len(batch) + 1 in self.inputs or not self.inputs:
            return batch
        usual = self.inputs - {1} or self.inputs
        wanted = min(usual, key=lambda d: (abs(d - len(batch) - 1), -d)) - 1
        if wanted > len(batch):
            return (*(1,) * (wanted - len(batch) - 1), 2, *batch) if batch else (1,) * (wanted - 1) + (2,)
        rows = 1
        for size in batch[: len(batch) - wanted + 1]:
            rows *= size
        return (rows, *batch[len(batch) - wanted + 1 :]) if wanted else ()


def can_quantise(subject: Implementation, quantiser: str) -> bool:
    """Whether the quantiser's library is where the subject runs; a subject in this process says nothing of it."""
    there: frozenset[str] | None = getattr(subject, "quantisers", None)
    return there is None or quantiser.split()[0] in there


FINEST_FIRST = ("float64", "float32", "float16", "bfloat16")
CHANGES = ("alpha", "dropout")
CANNOT = {
    "alpha": "an alpha of one's own choice",
    "dropout": "no dropout (p = 0)",
    "bias": "a base layer with a bias",
    "no bias": "a base layer without a bias",
    "scale": "a factor of α/r, where α/√r is always taken",
}
NO_DROPOUT = "dropout"
# What a mode is in the place of, where a subject has it always.
INSTEAD_OF = {"feedforward": "a gate on the output"}
# What is about something else than the scale factor, and where the lines are that decide it.
ABOUT = {
    NO_DROPOUT: "dropout",
    CANNOT["dropout"]: "dropout",
    CANNOT["bias"]: "forward",
    CANNOT["no bias"]: "forward",
    **dict.fromkeys(INSTEAD_OF.values(), "forward"),
}


def changed(spec: AdapterSpec, changes: tuple[str, ...]) -> AdapterSpec:
    """``spec`` with alpha put to the rank, dropout above zero."""
    if "alpha" in changes:
        spec = dataclasses.replace(spec, alpha=float(spec.rank))
    if "dropout" in changes and spec.dropout == 0:
        spec = dataclasses.replace(spec, dropout=HARDLY_ANY)
    return spec


@lru_cache(maxsize=128)
def abilities_of(subject: Implementation, variant: str) -> Abilities:
    """What ``subject`` takes of a variant, found on small layers."""
    dtypes, inputs = frozenset(subject.dtypes), frozenset(subject.inputs)
    whole = Abilities(subject, dtypes, inputs)
    ordinary = Case(AdapterSpec(variant, rank=2, alpha=3.0), 5, 4, bias=True, batch=(3,))
    # What the subject says that it does not take is not tried to see how it fails.
    ordinary = ordinary.but(dtype=whole.dtype(ordinary.dtype), batch=whole.batch(ordinary.batch))
    try:
        working, lacks = _working(subject, ordinary, whole)
    except (
        isolation.MISBEHAVES
    ):  # the claims' to say; what else it takes is not worth a process, or a minute, each
        return dataclasses.replace(whole, ordinary=ordinary)
    if working is None:
        return dataclasses.replace(whole, lacks=tuple(lacks))
    changes = tuple(c for c in CHANGES if any(lack.what == CANNOT[c] for lack in lacks))
    for name in sorted(
        dtypes - {working.dtype, *(lack.case.dtype for lack in lacks if lack.kind == "dtype")}
    ):
        lacks += _lacks(subject, working.but(dtype=name), "dtype", f"{name} base and x")
    asked = {len(working.batch), *(len(lack.case.batch) for lack in lacks if lack.kind == "input")}
    for dims in sorted(d for d in inputs & BATCHES.keys() if d - 1 not in asked):
        lacks += _lacks(subject, working.but(batch=BATCHES[dims]), "input", f"x of {dims} dimensions")
    if working.bias:
        lacks += _lacks(subject, working.but(bias=False), "spec", CANNOT["no bias"])
    lacks += [*_declared(subject, working), *_not_expressed(subject, working)]
    gone = {lack.what for lack in lacks}
    if 1 in inputs and _try(subject, working.but(batch=())) is not None:
        gone.add("x of 1 dimensions")  # which is forward.one_dimension's to tell
    return Abilities(
        subject,
        frozenset(d for d in dtypes if f"{d} base and x" not in gone),
        frozenset(d for d in inputs if f"x of {d} dimensions" not in gone),
        changes,
        tuple(lacks),
        working,
        CANNOT["bias"] not in gone,
        CANNOT["no bias"] in gone,
    )


def _declared(subject: Implementation, case: Case) -> Iterator[Lack]:
    beyond_torch: frozenset[str] = getattr(subject, "without_product", frozenset())  # beside an older torch
    for name in sorted(set(DTYPES) - set(subject.dtypes) - beyond_torch):
        yield Lack("dtype", f"{name} base and x", "declared", "the subject's `dtypes` leaves it out", case)
    for dims in sorted(set(BATCHES) - set(subject.inputs)):
        yield Lack(
            "input", f"x of {dims} dimensions", "declared", "the subject's `inputs` leaves it out", case
        )


def _not_expressed(subject: Implementation, case: Case) -> Iterator[Lack]:
    """What the subject's own ``nearest`` puts something else in the place of."""
    variant, why = VARIANTS[case.spec.variant], "the subject's `nearest` puts another in its place"
    asked = dataclasses.replace(case.spec, rank=2, alpha=3.0, dropout=0.25 if variant.has_dropout else 0.0)
    has_alpha = any(option.name == "rslora" for option in variant.options)  # α/√r in place of α/r
    if has_alpha and subject.nearest(asked).alpha != asked.alpha:
        yield Lack("spec", CANNOT["alpha"], "declared", why, case)
    if has_alpha and subject.nearest(asked).rslora:
        yield Lack("spec", CANNOT["scale"], "declared", why, case)
    for mode in always_on(subject, asked):
        yield Lack("spec", INSTEAD_OF.get(mode, f"{variant.title} without {mode}"), "declared", why, case)
    if variant.has_dropout and subject.nearest(asked).dropout == 0:
        yield Lack("spec", NO_DROPOUT, "declared", why, case)
    if variant.has_dropout and subject.nearest(dataclasses.replace(asked, dropout=0.0)).dropout > 0:
        yield Lack("spec", CANNOT["dropout"], "declared", why, case)


def always_on(subject: Implementation, spec: AdapterSpec) -> list[str]:
    """The modes that are off in ``spec``, and on in the nearest that the subject can express."""
    modes = [mode for mode in VARIANTS[spec.variant].modes if not getattr(spec, mode)]
    return [mode for mode in modes if getattr(subject.nearest(spec), mode)]


def _working(subject: Implementation, case: Case, whole: Abilities) -> tuple[Case | None, list[Lack]]:
    """The first case near the ordinary one that is answered, and what it took to get there."""
    first = _tried(subject, case)
    if first is None:
        return case, []
    for dtype, batch, changes, bias in _ways(case, whole):
        nearer = case.but(dtype=dtype, batch=batch, bias=bias)
        nearer = dataclasses.replace(nearer, spec=changed(subject.nearest(case.spec), changes))
        if _try(subject, nearer) is None:
            lacks = [Lack("spec", CANNOT[c], first[0], first[1], case) for c in changes]
            lacks += [] if bias else [Lack("spec", CANNOT["bias"], first[0], first[1], case)]
            if dtype != case.dtype:
                lacks.append(Lack("dtype", f"{case.dtype} base and x", first[0], first[1], case))
            if batch != case.batch:
                lacks.append(
                    Lack("input", f"x of {len(case.batch) + 1} dimensions", first[0], first[1], case)
                )
            return nearer, lacks
    return None, []


def _ways(case: Case, whole: Abilities) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...], bool]]:
    """Dtype, batch, changes of the spec, bias: one of them other than ordinary, then two of the spec, then all."""
    other = [d for d in ("float32", "bfloat16", "float16", "float64") if d != case.dtype]
    batches = [b for b in BATCHES.values() if b != case.batch]
    yield case.dtype, case.batch, (), True  # the subject's own `nearest`
    yield from ((case.dtype, case.batch, (c,), True) for c in CHANGES)
    yield from ((case.dtype, b, (), True) for b in batches)
    yield from ((d, case.batch, (), True) for d in other)
    yield case.dtype, case.batch, (), False
    yield case.dtype, case.batch, CHANGES, True
    yield from ((case.dtype, b, (c,), True) for b in batches for c in CHANGES)
    yield from ((case.dtype, b, CHANGES, True) for b in batches)
    yield case.dtype, case.batch, CHANGES, False


def _lacks(subject: Implementation, case: Case, kind: Kind, what: str) -> list[Lack]:
    found = _try(subject, case)
    return [] if found is None else [Lack(kind, what, found[0], found[1], case)]


def _try(subject: Implementation, case: Case) -> tuple[How, str] | None:
    """How a case is not answered, and in what words; None where it is, and where the subject misbehaves."""
    try:
        return _tried(subject, case)
    except isolation.MISBEHAVES:
        return None


def _tried(subject: Implementation, case: Case) -> tuple[How, str] | None:
    """The same; raises what says that the subject misbehaves."""
    try:
        with isolation.global_state(subject), isolation.time_limit(subject):
            seed_torch(0)
            layer = adapt(subject, case.base(), case.spec)
            with torch.no_grad():
                shape = tuple(layer(case.x).shape)
    except Unsupported as why:
        return "not offered", said(why)
    except (BadAnswer, SubjectRaised) as error:
        return "raised", str(error)
    expected = (*case.batch, case.out_features)
    if shape != expected:
        return "wrong shape", f"module(x) has shape {shape}, expected {expected}"
    return None

"""An adapted layer of another kind: its tensors as matrices, what it computes as rows, and the equation of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from harness.cases.kind_cases import KindCase, each_kind, options_of, quantised, shapes_of
from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.abilities import can_quantise
from harness.compare.adapted_model import offers_models
from harness.compare.blame import is_of_the_library
from harness.compare.context import Context
from harness.compare.kind_faults import agrees
from harness.compare.kind_start import is_plain, linear_starts_there, starts_at_the_base
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt, answering
from harness.compare.life_model import completed, left_by
from harness.compare.of_its_patches import computes_from_its_patches
from harness.compare.outcome import (
    NoSlot,
    NotApplicable,
    NotOffered,
    OtherLayout,
    OutsideDomain,
)
from harness.compare.refusals import is_crash
from harness.compare.rounding import Point, Quantities, coarser
from harness.compare.thresholds import THRESHOLDS
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import paper


class Kinds:
    """A subject's layer of a kind; canonical names and shapes outside, the subject's own within."""

    def __init__(self, layer: Layer, case: KindCase) -> None:
        self.layer, self.case = layer, case
        self.adapted = layer.adapted
        own = {t.name for t in case.variant.tensors if t.role != "base"}
        self.names = [name for name in layer.names if name in own]
        start = {name: self.value(name) for name in self.names}
        self.left = left_by(case.weight.double(), start, case.spec)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def value(self, name: str) -> Tensor:
        """A tensor in the canonical shape, float64."""
        return self._canonical(name, self.layer.value(name))

    def _canonical(self, name: str, live: Tensor) -> Tensor:
        try:
            return self.case.matrix(name, live)
        except ValueError:
            raise self._other_layout(name, live) from None
        except RuntimeError:
            if self.case.groups > 1:
                raise OutsideDomain("of a grouped kernel there is more than one factorisation") from None
            raise self._other_layout(name, live) from None

    def _other_layout(self, name: str, live: Tensor) -> OtherLayout:
        """Without sizes and options in the sentence: one layout is one finding."""
        on = f"{self.case.kind} layers" + (" with groups" if self.case.groups > 1 else "")
        return OtherLayout(self.case, name, on, (self.case.canonical_shape(name), tuple(live.shape)))

    def is_a_guess(self) -> bool:
        """Whether a convolution's factors can be read as two functions: A in blocks, or one A for all groups."""
        return self.case.groups > 1 and _may_share(self.case, self.layer)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Canonical values into the slots."""
        for name, value in values.items():
            if name in self.names:
                self.layer.write({name: self.case.live(name, value, self.layer.value(name).shape)})

    def is_in_blocks(self, name: str) -> bool:
        """Whether the slot of a convolution with groups has each group's own block alone, and no zeros between."""
        return self.layer.value(name).numel() < self.value(name).numel()

    def parameters(self) -> dict[str, Tensor]:
        """Every canonical tensor; what has no slot and is determined by the weight, from the weight."""
        values = {name: self.value(name) for name in self.names} | self.left
        return completed(values, self.case.weight.double(), self.case.spec)

    def observe(self, case: KindCase, *, wants_gradient: bool = True) -> Quantities:
        """Output as rows, and the gradients of <G, y> by the tensors and, where it wants one, by x; float64."""
        x = case.x.requires_grad_(wants_gradient and case.input.is_floating_point())
        self.layer.clear_gradients()
        y = self.layer(x)
        rows = case.outputs(y)
        with answering(self.layer.who, "the backward pass"):
            if y.requires_grad:
                rows.backward(case.cotangent_of(rows.shape).to(rows.dtype))
        found = {"output": rows.detach().double()}
        for name in self.names:
            if self.layer.raw(name).requires_grad:
                found[f"gradient of {name}"] = self._canonical(name, self.layer.gradient(name))
        if x.grad is not None:
            found["gradient of x"] = x.grad.double()
        return found


def adapted(context: Context, case: KindCase, base: object = None) -> Kinds:
    """The subject on a layer of the case's kind. Raises NotOffered.

    A crash is no refusal (`harness/compare/refusals.py`): it is a fault of who calls the kind one that it takes.
    """
    if case.kind not in context.subject.layers:
        raise NotOffered(f"{case.kind} layers", "layers")
    _can_be_made(context, case)
    given: Any = base or case.base()  # before the seed: making one draws its start
    seed_torch(case.seed)
    with refusable(f"{case.spec.variant} on {case.what}"):
        layer = adapt(context.subject, given, case.spec)
    _refuse_a_plain_one(context, case, layer, given)
    if case.groups > 1 and (otherwise := _other_factors(context, case, layer)):
        raise OutsideDomain(f"{otherwise}: another factorisation of the kernel than the references' blocks")
    base = context.variant.base
    if base is not None and base.name not in layer.names:  # what is left of the weight is taken to be right
        linear_starts_there(context, case)
    try:
        return Kinds(layer, case)
    except (NoSlot, OutsideDomain):
        # Tensors of another shape may be a layout of the library's own, or a fault that shows in the output.
        starts_at_the_base(context, case, layer)
        computes_from_its_patches(case, layer)
        raise


def far(context: Context, case: KindCase, base: object = None) -> Kinds:
    """The subject on a layer of the case's kind, far from its start. Raises NotOffered."""
    layer = adapted(context, case, base)
    layer.write(case.far(dict.fromkeys(layer.names)))
    return layer


def _may_share(case: KindCase, layer: Layer) -> bool:
    """Whether A has a group's inputs, and B joins every output to the whole rank."""
    r = case.spec.rank
    return _sizes(layer) == {"A": case.in_features * r // case.groups, "B": case.out_features * r}


def _have_pairs(case: KindCase, layer: Layer) -> bool:
    """Whether A has every input, and B joins every output to the whole rank: each group may have a pair of its own."""
    r = case.spec.rank
    return _sizes(layer) == {"A": case.in_features * r, "B": case.out_features * r}


def _sizes(layer: Layer) -> dict[str, int]:
    """How many numbers each factor has."""
    return {name: layer.value(name).numel() for name in ("A", "B") if name in layer.names}


def _other_factors(context: Context, case: KindCase, layer: Layer) -> str:
    """How the update of a convolution with groups is factorised, where it is not as the references do it; else "".

    One A (r, in/groups) that all groups share, ΔW = B A as it is stored; or a pair (A_g, B_g) of the whole rank in
    each group, ΔW the blocks of B A.
    """
    shared, pairs = _may_share(case, layer), _have_pairs(case, layer)
    if not (shared or pairs):
        return ""
    try:
        layer = adapt(context.subject, case.base(), case.spec)  # the other one keeps its start
        kinds = Kinds(layer, case)
        kinds.write(case.far(dict.fromkeys(kinds.names)))
        update = _shared if shared else _in_pairs
        weight, bias = update(context, case, kinds)
        exact = case.rows(case.input) @ weight.mT + bias
        with torch.no_grad():
            actual = case.outputs(layer(case.x)).double()
    except (NoSlot, OutsideDomain, KeyError, RuntimeError, SubjectRaised):
        return ""
    unit = rounding.roundoff(coarser(case.torch_dtype)) * float(exact.norm())
    told = "the groups share A" if shared else "each group has factors of its own"
    return told if agrees(actual, exact, unit) else ""


def _shared(context: Context, case: KindCase, kinds: Kinds) -> tuple[Tensor, Tensor]:
    """W (out, in) and b where ΔW = B A is read in the shape of the stored weight."""
    values = {n: kinds.value(n) for n in kinds.names}
    values |= {"A": kinds.layer.value("A").reshape(case.spec.rank, -1)}
    stored = case.base().weight.detach().double().flatten(1)
    weight, bias = _effective(context, case, stored, values)
    return weight.repeat(1, case.groups) * case.mask(case.out_features, case.in_features), bias


def _in_pairs(context: Context, case: KindCase, kinds: Kinds) -> tuple[Tensor, Tensor]:
    """W (out, in) and b where of B A the blocks of the groups act."""
    weight, bias = _effective(context, case, case.weight.double(), kinds.parameters())
    return weight * case.mask(case.out_features, case.in_features), bias


def _effective(
    context: Context, case: KindCase, W: Tensor, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    b = case.bias_vector
    return paper.effective(context.forward, W, None if b is None else b.double(), values, case.spec)


def on_each_kind(
    context: Context,
    case: KindCase,
    kinds: Sequence[str],
    ask: Callable[[Context, KindCase], None],
    *,
    both: bool = False,
) -> None:
    """Ask of a layer of every kind, or of ``both``, a square one and one that is not.

    One that is not taken hides no other. Raises NotOffered where none is.
    """
    refused: list[NotApplicable] = []
    unread: list[NoSlot] = []
    asked = list(each_kind(case, kinds, both=both))
    for each in asked:
        try:
            with raised_on(each):
                ask(context, context.abilities.fitted(each))
        except (NotOffered, OutsideDomain) as why:
            refused.append(why)
        except NoSlot as why:
            unread.append(why)
    if unread:
        raise unread[0]
    if len(refused) == len(asked):
        raise NotOffered("; ".join(dict.fromkeys(map(str, refused))), "layers")


@contextmanager
def raised_on(case: Case) -> Iterator[None]:
    """What the subject raises inside was raised on this case, which need not be the claim's own."""
    try:
        yield
    except SubjectRaised as error:
        error.case = error.case or case
        raise


@contextmanager
def refusable(what: str, mode: str = "layers") -> Iterator[None]:
    """What the subject refuses inside is a mode that is not offered; a crash is no refusal. Raises NotOffered."""
    try:
        yield
    except (SubjectRaised, Unsupported) as why:
        if is_crash(why):
            raise
        raise NotOffered(f"{what}: {why}", mode) from why


def _refuse_a_plain_one(context: Context, case: KindCase, layer: Layer, given: Any) -> None:
    """Raise NotOffered for a plain embedding in the place of one that scales its output.

    Who replaces layers one by one chooses which, and so does the subject's file; a library that walks through a model,
    or takes the layer itself and its weight, has chosen itself.
    """
    starts_there = case.variant.starts_at_identity(case.spec)
    if case.embed_scale == 1.0 or offers_models(context.subject) or not starts_there:
        return
    if any(is_of_the_library(context.subject, file) for file in getattr(given, "read_in", ())):
        return
    with torch.no_grad():
        plain = is_plain(case, layer(case.x))
    if plain:
        raise NotOffered(
            f"{context.subject.name} puts a plain embedding in the place of one with a scale", "layers"
        )


def plain_ones_answer(context: Context, case: KindCase) -> bool:
    """Whether the plain layers of a kind, without the options of the case, are adapted and called without an error."""
    spec = replace(case.spec, rank=2)
    for shape in (s for s in shapes_of(case.kind) if not options_of(s)):
        plain = KindCase(spec, bias=case.bias, batch=(2,), dtype=case.dtype, kind=case.kind, **shape)
        try:
            adapt(context.subject, plain.base(), plain.spec)(plain.x)
        except SubjectRaised:
            return False
        except (Unsupported, BadAnswer):
            continue
    return True


_TAKEN: WeakKeyDictionary[Implementation, dict[tuple[str, str], bool]] = WeakKeyDictionary()


def takes(context: Context, case: KindCase) -> bool:
    """Whether the subject adapts layers of a kind with this variant, asked once with the plainest of them.

    Raises OutsideDomain where no library that quantises is installed.
    """
    _can_be_made(context, case)
    known, key = _TAKEN.setdefault(context.subject, {}), (context.variant.id, case.kind)
    if key not in known:
        known[key] = _is_taken(context, case.kind)
    return known[key]


def _can_be_made(context: Context, case: KindCase) -> None:
    if case.kind != "quantised":
        return
    if not case.quantiser:
        raise OutsideDomain("no library that quantises is installed here: torchao or bitsandbytes")
    if not can_quantise(context.subject, case.quantiser):
        raise OutsideDomain(f"no {case.quantiser.split()[0]} in the subject's environment")


def _is_taken(context: Context, kind: str) -> bool:
    shapes = shapes_of(kind)
    if not shapes:
        return False
    case = KindCase(
        AdapterSpec(context.variant.id, rank=2, alpha=3.5),
        bias=kind != "embedding",
        batch=(2,),
        kind=kind,
        **shapes[0],
    )
    try:
        adapted(context, context.abilities.fitted(case))
    except (NotOffered, NoSlot, SubjectRaised):
        return False
    return True


def equation_at(context: Context, case: KindCase, layer: Kinds) -> tuple[Quantities, Callable[[str], float]]:
    """The equation's quantities at the layer's parameters, and the rounding noise of each, measured when asked."""
    rows = case.rows(case.input)
    b = None if case.bias_vector is None or case.kind == "embedding" else case.bias_vector.double()
    G = case.cotangent_of(torch.Size((rows.shape[0], case.out_features))) * case.embed_scale
    point = Point(rows, case.weight.double(), b, layer.parameters(), G, case.spec)
    trained = [n for n in layer.names if layer.layer.raw(n).requires_grad]
    in_blocks = [f"gradient of {n}" for n in layer.names if layer.is_in_blocks(n)]

    def at(p: Point) -> Quantities:
        return of_layer(case, rounding.evaluate(context.forward, p, trained, True), in_blocks)

    @cache
    def noise() -> dict[str, float]:
        return rounding.noise(at, point, coarser(case.torch_dtype), case.generator(7))

    exact = at(point)
    return exact, lambda name: noise()[name]


def of_layer(case: KindCase, found: Quantities, in_blocks: Sequence[str]) -> Quantities:
    """Quantities of the rows as quantities of the layer: scaled, folded, without what is not asked."""
    found = {**found, "output": found["output"] * case.embed_scale}
    gradient = found.pop("gradient of x")
    if case.kind != "embedding":
        found["gradient of x"] = case.back(gradient)
    found |= {n: found[n] * case.mask(*found[n].shape) for n in in_blocks if n in found}
    if case.padding_idx is not None:  # whether the padding's own row learns is not said
        found = {
            n: g for n, g in found.items() if not n.startswith("gradient") or case.in_features not in g.shape
        }
    return found


def quantising_error(context: Context, case: KindCase, layer: Kinds, exact: Tensor) -> float:
    """Twice what quantising the right merged weight, by the layer's own library, does to the output.

    As a floor: the threshold's multiple of it is what may be lost.
    """
    with torch.no_grad():
        W, bias = _effective(context, case, case.weight.double(), layer.parameters())
        best = quantised(case, W.float(), None if case.bias_vector is None else bias.float())
        lost = case.outputs(best(case.x)).double() - exact
    return 2 * float(lost.norm()) / THRESHOLDS["formula"]

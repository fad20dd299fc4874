"""Shapes: which tensors an adapter has, how large they are, and which of them train."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from harness.cases.layer_cases import Case, Domain
from harness.compare.abilities import always_on
from harness.compare.context import Context
from harness.compare.ear import heard_before, utterances
from harness.compare.held_outside import HELD_OUTSIDE, held_outside
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt, answering, as_layer
from harness.compare.loose_parameters import asked_in_vain, further_trained
from harness.compare.offered import need
from harness.compare.outcome import (
    Deviation,
    ModeMissing,
    NotOffered,
    OutsideDomain,
    ToldElsewhere,
    Unverified,
    without_numbers,
)
from harness.compare.probing import far_layer, is_the_bases, mode_is_ignored
from harness.compare.thresholds import BASE_CHANGED
from harness.engine.checks import check
from oracles.implementation import AdapterSpec, Unsupported
from oracles.variants import Variant
from reports.model import Diagnosis


def _further(names: list[str]) -> Diagnosis | None:
    """An adapter with more than the reference's tensors, an extension where the docstring names one of them.

    None where a name is short: a docstring has such a word for other reasons ("gate", "bias").
    """
    if min(map(len, names)) < 5:
        return None
    return Diagnosis(
        "shapes.further_tensors",
        f"the adapter has what the reference's has not: {', '.join(names)}",
        "a checkpoint of it would not fit the reference's",
        documented_by=tuple(rf"\b{re.escape(name)}\b" for name in names),
        remedy=f"leave {', '.join(names)} out, or state in the docstring that it is an extension of the method",
    )


LOWERED = Diagnosis(
    "shapes.rank_lowered",
    "the rank that is asked for is silently lowered",
    "a smaller adapter is trained than the configuration says, and a checkpoint of the rank asked for does not fit",
    documented_by=(
        r"\brank\b.{0,60}\b(at most|no more than|min\(|capp?ed|clamp\w*|limit\w*|lower\w*|reduc\w*)",
    ),
    remedy="take the rank that is asked for, or refuse it in a sentence",
)
SAID_TO_BE_LOWERED = dataclasses.replace(
    LOWERED, summary="the rank that is asked for is lowered, which is said aloud", severity="minor"
)


def _lowered(context: Context, case: Case, layer: Layer) -> Diagnosis | None:
    """What explains tensors that are all there, in the shapes of one smaller rank; None where that is not it."""
    known = [t for t in context.variant.tensors if t.name in layer.names and t.role != "base"]
    there = [tuple(layer.view(t.name).shape) for t in known]

    def at(rank: int) -> list[tuple[int, ...]]:
        spec = dataclasses.replace(case.spec, rank=rank)
        return [tuple(t.shape(case.out_features, case.in_features, spec)) for t in known]

    if there == at(case.spec.rank) or not any(there == at(rank) for rank in range(1, case.spec.rank)):
        return None
    who = context.subject.name
    heard = {without_numbers(w) for w in (*utterances(who), *heard_before(who)) if OF_RANKS.search(w)}
    return SAID_TO_BE_LOWERED if heard - _words(context, case.but(rank=1)) else LOWERED


@check(
    "shapes",
    "major",
    title="the adapter's tensors are not the reference's",
    failure_mode="a checkpoint written by either would not fit the other",
)
def test_canonical(context: Context, case: Case) -> None:
    """Every canonical tensor is there, under its name and in its shape, and there is nothing else.

    Shapes in torch layout, y = x Wᵀ + b, W (out, in): A (r, in), B (out, r), m (out,), l (out,) or (in,),
    U (in, r), λ (1,), w_norm (in,).
    """
    ours, theirs = context.layer(case), context.reference(case)
    for tensor in context.variant.tensors:
        if tensor.name in theirs.names:
            wanted = tuple(theirs.view(tensor.name).shape)
            there = tuple(ours.view(tensor.name).shape) if tensor.name in ours.names else "no such slot"
            optional = tensor.role == "base" and there == "no such slot"
            if not optional and there != wanted:
                told = _lowered(context, case, ours)
                raise Deviation(case, f"shape of {tensor.name}", str(wanted), str(there), diagnosis=told)
    if extra := sorted(set(ours.names) - set(theirs.names)):
        names = ", ".join(extra)
        raise Deviation(case, "further tensors of the adapter", "none", names, diagnosis=_further(extra))


def _untrained(ours: Layer, theirs: Layer) -> Diagnosis | None:
    """The tensors that want a gradient in the reference and none here, by name."""
    names = [n for n in theirs.names if n in ours.names]
    still = [n for n in names if theirs.raw(n).requires_grad and not ours.raw(n).requires_grad]
    if not still:
        return None
    return Diagnosis(
        f"shapes.untrained_{'_'.join(still)}",
        f"{' and '.join(still)} {'wants' if len(still) == 1 else 'want'} no gradient",
        "what the reference trains stays as it starts",
        remedy=f"let {' and '.join(still)} want a gradient when the adapter is made",
    )


@check(
    "shapes",
    "major",
    title="a tensor of the adapter has another role than in the reference",
    failure_mode="optimisers, parameter counts and weight decay would see a tensor that should be fixed, or miss one",
)
def test_roles(context: Context, case: Case) -> None:
    """What trains in the reference trains here, as the module's parameter; what is a persistent buffer is one here."""
    ours, theirs = context.layer(case), context.reference(case)
    lacking = [t.name for t in context.variant.tensors if t.name in ours.names and t.name not in theirs.names]
    if lacking and not any(
        t.name in theirs.names and t.name not in ours.names for t in context.variant.tensors
    ):
        raise Unverified(f"{theirs.who} has no {', '.join(lacking)} to compare the roles of")
    outside = held_outside(ours, case.x)
    for name in [n for n in theirs.names if n in ours.names]:
        if name in outside and theirs.raw(name).requires_grad:
            what, actual = f"role of {name}", "in none of its modules' lists"
            raise Deviation(case, what, "a parameter of the module", actual, diagnosis=HELD_OUTSIDE)
        wanted = "trainable" if theirs.raw(name).requires_grad else "not trainable"
        actual = "trainable" if ours.raw(name).requires_grad else "not trainable"
        if wanted != actual:
            raise Deviation(case, f"role of {name}", wanted, actual, otherwise=_untrained(ours, theirs))
        if wanted == "not trainable" and isinstance(ours.raw(name), nn.Parameter):
            held = context.variant.tensor(name)
            is_buffer = held is not None and held.role == "buffer"
            context.demand(not is_buffer, case, f"role of {name}", "a persistent buffer", "an nn.Parameter")


def _loose(context: Context, case: Case) -> tuple[list[str], list[str]]:
    """The trainable parameters outside the adapter, of the subject and of the oracle."""
    ours, theirs = context.layer(case), context.reference(case)
    allowed = {id(ours.raw(n)) for n in ours.names if n not in theirs.names or theirs.raw(n).requires_grad}
    loose = [n for n, p in ours.module.named_parameters() if p.requires_grad and id(p) not in allowed]
    own = {id(theirs.raw(n)) for n in theirs.names}
    return loose, [n for n, p in theirs.module.named_parameters() if p.requires_grad and id(p) not in own]


def _kept_for_another(context: Context, case: Case) -> set[str]:
    """The names of the parameters that a second adapter gets, where the layer has them from the start."""
    layer = context.layer(case)
    there = {n: id(p) for n, p in layer.module.named_parameters()}
    try:
        need(context.subject, case.spec, ("add_adapter",))
        added = context.calling("add_adapter", context.subject.add_adapter, layer.adapted, "b", case.spec)
        second = as_layer(added, context.subject, "add_adapter")
        slots = {id(second.raw(n)) for n in second.names}
    except (NotOffered, SubjectRaised, BadAnswer, Unsupported):
        return set()
    return {n for n, own in there.items() if own in slots}


@check(
    "shapes",
    "major",
    title="parameters outside the adapter are trainable",
    failure_mode="an optimiser over all trainable parameters would move them; the reference has no such tensor to save",
    domain=Domain(biases=(True, False)),
)
def test_frozen_base(context: Context, case: Case) -> None:
    """Nothing is trainable but the adapter's tensors: the base weight and bias are frozen."""
    loose, there = _loose(context, case)
    if not loose or there or set(loose) <= _kept_for_another(context, case):
        return
    what, named = (
        "trainable parameters outside the adapter",
        dict(context.layer(case).module.named_parameters()),
    )
    held = [case.weight, case.weight.T, *([] if case.bias_vector is None else [case.bias_vector])]
    told = asked_in_vain({n: named[n] for n in loose}, held, _with_gradient(context, case, loose))
    told = told or further_trained(context.layer(case), case)
    raise Deviation(case, what, "none", ", ".join(loose), diagnosis=told)


def _with_gradient(context: Context, case: Case, names: list[str]) -> bool:
    """Whether a backward pass leaves a gradient on any of these parameters."""
    layer = far_layer(context, case)
    layer.clear_gradients()
    y = layer(case.x)
    if y.requires_grad:
        with answering(layer.who, "the backward pass"):
            y.sum().backward()
    return any(dict(layer.module.named_parameters())[name].grad is not None for name in names)


RANK_ZERO = Diagnosis(
    "shapes.rank_zero",
    "a rank of zero is accepted",
    "a mistyped configuration would train nothing, or divide by zero later",
    agrees_with="microsoft/LoRA, where r = 0 leaves the layer plain; PEFT refuses it",
    documented_by=(r"(r|rank)\s*=+\s*0", "rank (of )?(zero|0)"),
    severity="minor",
    remedy="refuse a rank below one in a sentence",
)


WITHOUT_FACTORS = dataclasses.replace(
    RANK_ZERO,
    summary="a rank of zero is accepted: the adapter has no {}, and trains {} alone",
    failure_mode="a mistyped configuration would train a part of the method",
    agrees_with=None,
)


@check(
    "shapes",
    "minor",
    title="a rank below one is accepted",
    failure_mode="a mistyped configuration would train nothing, or divide by zero later",
    applies=lambda variant: variant.has_rank,
    examples=2,
    against=("peft", "paper"),
    diagnose=False,
)
def test_bad_rank(context: Context, case: Case) -> None:
    """A rank of 0 or -1 is refused with an exception."""
    for rank in (-1, 0):
        wrong = dataclasses.replace(case.spec, rank=rank)
        try:
            layer = adapt(context.subject, case.base(), wrong)
        except (SubjectRaised, Unsupported):
            continue
        raise Deviation(
            case,
            f"adapt with rank {rank}",
            "an exception",
            "an adapter",
            diagnosis=None if rank else _of_rank_zero(context, layer, case),
        )


def _of_rank_zero(context: Context, layer: Layer, case: Case) -> Diagnosis | None:
    """What an adapter of rank zero is: a plain layer, or one that trains what does not depend on the rank."""
    tensors = {n: layer.raw(n) for n in layer.names}
    trained = [n for n, t in tensors.items() if isinstance(t, Tensor) and t.requires_grad and t.numel()]
    empty = [n for n in tensors if n not in trained and _depends_on_rank(context, case, n)]
    if trained and empty and _answers_finitely(layer, case):
        words = WITHOUT_FACTORS.summary.format(" and no ".join(empty), " and ".join(trained))
        return dataclasses.replace(WITHOUT_FACTORS, summary=words)
    return RANK_ZERO if not trained and _is_plain(layer, case) else None


def _depends_on_rank(context: Context, case: Case, name: str) -> bool:
    tensor, sizes = context.variant.tensor(name), (case.out_features, case.in_features)
    other = dataclasses.replace(case.spec, rank=case.spec.rank + 1)
    return tensor is not None and tensor.shape(*sizes, other) != tensor.shape(*sizes, case.spec)


def _answers_finitely(layer: Layer, case: Case) -> bool:
    try:
        with torch.no_grad():
            return bool(layer(case.x).isfinite().all())
    except (SubjectRaised, BadAnswer):
        return False


def _is_plain(layer: Layer, case: Case) -> bool:
    """Whether the layer answers as its base does."""
    try:
        with torch.no_grad():
            return is_the_bases(layer(case.x), case)
    except (SubjectRaised, BadAnswer):
        return False


def _undefined(variant: Variant, case: Case) -> Iterator[tuple[str, Case]]:
    """The smallest rank above one that the method has no meaning for, plainly ("") and in each mode."""
    for mode in ("", *variant.modes):
        there = case.but(**{mode: True}) if mode else case
        for rank in range(2, max(case.in_features, case.out_features) + 2):
            wanted = there.but(rank=rank)
            if not variant.in_domain(case.out_features, case.in_features, wanted.spec):
                yield mode, wanted
                break


def _has_undefined_ranks(variant: Variant) -> bool:
    return any(_undefined(variant, Case(AdapterSpec(variant.id), 4, 4, True, (2,), "float32", 0)))


PEFT_TAKES_FEWER = "PEFT 0.21, which takes as many triples as there are and keeps α/r of the rank asked for"
PEFT_WARNS = "PEFT 0.21, which starts so and warns of it"
PEFT_TAKES_MORE = "PEFT 0.21, which makes more vectors orthogonal than there are dimensions"
# Of the rank itself: "multiple adapters" and "Rank-Stabilized" are of something else, and said in other claims.
OF_RANKS = re.compile(r"\b(rank(?![- ]stabili[sz]ed)|r)\b", re.IGNORECASE)
UNDEFINED = Diagnosis(
    "shapes.undefined_rank",
    "a rank that the method is not defined for is taken without a word about it",
    "what trains would be another adapter than the configuration says, or would not start as the base",
    documented_by=(r"\b(odd|even)\b", r"\brank\b.{0,60}(above|larger|exceed|at most|\bmin\()"),
    severity="minor",
    remedy="refuse such a rank in a sentence, or warn of it",
)


@check(
    "shapes",
    "minor",
    title="a rank that the method is not defined for is taken without a word about it",
    failure_mode="what trains would be another adapter than the configuration says, or would not start as the base",
    applies=_has_undefined_ranks,
    domain=Domain(dtypes=("float32",), sizes=(4, 9)),
    examples=1,
    against=("paper",),
    follows=("init.identity",),
    diagnose=False,
    may_refuse=True,
)
def test_undefined_rank(context: Context, case: Case) -> None:
    """Above min(in, out) in PiSSA, odd in HRA, above in with Gram-Schmidt: refused, warned of, or as one would hope.

    That is: its tensors have the rank that was asked for, and it starts as the base layer.
    """
    asked = [each for mode, each in _undefined(context.variant, case) if _is_offered(context, mode, each)]
    if not asked:
        raise OutsideDomain("it is not asked for such ranks")
    for each in asked:
        try:
            layer, y, said = _answers(context, each)
        except (SubjectRaised, Unsupported):
            continue
        if not _warns(context, each, said, asked):
            _as_asked(context, each, layer, y)


def _answers(context: Context, case: Case) -> tuple[Layer, Tensor, set[str]]:
    """An adapter, what it answers, and what is said meanwhile, a # for every number."""
    before = len(utterances(context.subject.name))
    layer = adapt(context.subject, case.base(), case.spec)
    with torch.no_grad():
        y = layer(case.x)
    return layer, y, set(map(without_numbers, utterances(context.subject.name)[before:]))


def _warns(context: Context, case: Case, said: set[str], others: list[Case]) -> bool:
    """Whether something is said that is not said of any rank: now, or earlier of ranks and not again of the others.

    A library may say a thing once in a process; what it repeats, it would have said here as well.
    """
    usual = _words(context, case.but(rank=2))
    earlier = {without_numbers(w) for w in heard_before(context.subject.name) if OF_RANKS.search(w)}
    repeated = set().union(*(_words(context, other) for other in others if other is not case))
    return bool((said | (earlier - repeated)) - usual)


def _words(context: Context, case: Case) -> set[str]:
    """What is said where an adapter is made and called; nothing where it is refused."""
    try:
        return _answers(context, case)[2]
    except (SubjectRaised, Unsupported):
        return set()


def _is_offered(context: Context, mode: str, case: Case) -> bool:
    """Whether the subject has the mode, and leaves the rank to who asks."""
    try:
        there = not mode or not mode_is_ignored(context, case.but(rank=2), [mode])
    except (SubjectRaised, Unsupported):
        return False
    return there and context.abilities.fitted(case) == case


def _as_asked(context: Context, case: Case, layer: Layer, y: Tensor) -> None:
    """Every tensor has the rank of the case, and the layer starts as its base: ``y`` is what it answered."""
    for tensor in context.variant.tensors:
        if tensor.name in layer.names and tensor.role != "base":
            asked = tensor.shape(case.out_features, case.in_features, case.spec)
            there = tuple(layer.view(tensor.name).shape)
            if asked != there:
                alike = PEFT_TAKES_FEWER if context.variant.factorised else None
                raise _taken(case, f"{tensor.name} of {asked}", f"{tensor.name} of {there}", alike)
    with torch.no_grad():
        base = case.base()(case.x)
    away = float((y - base).norm() / base.norm())
    if not away < BASE_CHANGED:
        far = f"is {away:.3g} times the base's output away" if math.isfinite(away) else "is not finite"
        told = f"a start that {far}"
        alike = PEFT_TAKES_MORE if case.spec.rank > case.in_features else PEFT_WARNS
        raise _taken(case, "the base's output at the start", told, alike)


def _taken(case: Case, wanted: str, there: str, alike: str | None) -> Deviation:
    quantity = f"an adapter of rank {case.spec.rank}"
    told = dataclasses.replace(UNDEFINED, agrees_with=alike)
    return Deviation(case, quantity, f"an exception, a warning, or {wanted}", there, diagnosis=told)


@check(
    "shapes",
    "major",
    title="a mode of the reference is not there, or its option changes nothing",
    failure_mode="a configuration that asks for the mode would train something else",
    modes=True,
    examples=4,
    diagnose=False,
)
def test_modes(context: Context, case: Case) -> None:
    """Each mode of the reference (IA³'s feed-forward side, HRA's Gram-Schmidt) is offered and makes a difference."""
    try:
        ours = context.layer(case)
    except Unsupported as why:
        raise ModeMissing(why, case_mode(context, case)) from why
    mode = case_mode(context, case)
    if mode in always_on(context.subject, case.but(**{mode: False}).spec):
        raise ToldElsewhere(f"it has {mode} alone, and nothing to tell it from", "scale.specs")
    if mode_is_ignored(context, case):
        context.demand(
            False, case, f"an adapter with {mode}=True", "another function", "the same as without it"
        )
    del ours


def case_mode(context: Context, case: Case) -> str:
    """The mode that the case asks for."""
    return next(m for m in context.variant.modes if getattr(case.spec, m))

"""Kinds of layers: GPT-2's Conv1D, embeddings, convolutions, quantised weights, each as the matrix product that it is.

Asked only of subjects whose ``layers`` names the kind. What a library refuses when it adapts is not offered; what it
takes has to start, compute, learn and fold as the equation says of `harness/cases/kind_cases.py`'s matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.cases.kind_cases import (
    KINDS,
    KindCase,
    in_dtype,
    in_every_shape,
    of_kind,
    shapes_with,
    square,
)
from harness.cases.layer_cases import Case, Domain
from harness.cases.leaf_output import with_leaf_output
from harness.compare import kind_mistakes, life_faults, rank_stabilised, rounding
from harness.compare.beside_linear import is_the_linears, merges_as_the_linear
from harness.compare.context import Context, where_worst
from harness.compare.kind_faults import PADDING_LEARNS, agrees, explain, explain_gradient, merged_without
from harness.compare.kind_start import starts_at_the_base
from harness.compare.kinds import (
    Kinds,
    adapted,
    equation_at,
    far,
    on_each_kind,
    quantising_error,
    raised_on,
    refusable,
    takes,
)
from harness.compare.layer import BadAnswer, SubjectRaised, as_layer, situation
from harness.compare.life_model import Held, compositions
from harness.compare.loose_parameters import learns_beside
from harness.compare.offered import adapts_linear, need, offers
from harness.compare.outcome import Deviation, NoSlot, NotOffered, NotTold
from harness.compare.probing import alike, kept_factor, masked, mode_is_ignored
from harness.compare.refusals import is_crash
from harness.compare.thresholds import MASK_ENTRY, SAME_MASK, STANDARD_ERRORS
from harness.compare.unmerging import leaves_a_rest, offers_folding
from harness.engine.checks import check
from oracles.implementation import Unsupported
from oracles.variants import Variant, paper
from reports.model import Diagnosis

AFFECTED = ("forward.random_parameters", "forward.gradients", "forward.modes")


FEW = 3  # cases of one shape
RATE = 0.4  # of dropout
MASKS = 8


def _of(kind: str, option: str | None = None) -> dict[str, Any]:
    # Each in every shape that the table has: those with an option have one, the others three.
    few = {"examples": 2} if option is None else {"examples": FEW, "may_refuse": True}
    return {
        "failure_mode": "layers of this kind run and train as another model than the references' would",
        "domain": Domain(strategy=of_kind(kind, option)),
        "against": ("paper",),
        "follows": (*AFFECTED, *(() if option is None else (f"layers.{kind}",))),
        "diagnose": False,
        **few,
    }


@check("layers", "critical", title="on a Conv1D the adapter is not the equation's", **_of("conv1d"))
def test_conv1d(context: Context, case: KindCase) -> None:
    """On transformers' Conv1D, whose weight is stored (in, out), start, output and gradients are the equation's."""
    _starts_and_computes(context, case)


@check("layers", "critical", title="on an embedding the adapter is not the equation's", **_of("embedding"))
def test_embedding(context: Context, case: KindCase) -> None:
    """On an embedding, with padding or without, it is that of a linear layer on one-hot vectors."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on an embedding whose output is scaled the adapter is not the equation's",
    **_of("embedding", "embed_scale"),
)
def test_embedding_scale(context: Context, case: KindCase) -> None:
    """On an embedding that multiplies its output by a constant, the adapter's part is multiplied with it."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on an embedding whose weight a head shares the adapter is not the equation's, or changes the head",
    **_of("embedding", "tied"),
)
def test_embedding_tied(context: Context, case: KindCase) -> None:
    """On an embedding that is tied to a head, it is that of a linear layer on one-hot vectors; the head stays."""
    _starts_and_computes(context, case)


@check("layers", "critical", title="on a convolution the adapter is not the equation's", **_of("conv2d"))
def test_conv2d(context: Context, case: KindCase) -> None:
    """On a convolution of any kernel, stride and padding, it is that of a linear layer on its patches."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on a dilated convolution the adapter is not the equation's",
    **_of("conv2d", "dilation"),
)
def test_conv2d_dilation(context: Context, case: KindCase) -> None:
    """On a convolution with dilation, it is that of a linear layer on its patches."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on a convolution with groups the adapter is not the equation's",
    **_of("conv2d", "groups"),
)
def test_conv2d_groups(context: Context, case: KindCase) -> None:
    """On a convolution with groups, it is that of a linear layer on its patches, each group on its own channels."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on a convolution that pads with other than zeros the adapter is not the equation's",
    **_of("conv2d", "padding_mode"),
)
def test_conv2d_padding_mode(context: Context, case: KindCase) -> None:
    """On a convolution whose images are padded circularly, it is that of a linear layer on the padded patches."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="on a convolution that is not the same in both directions the adapter is not the equation's",
    **_of("conv2d", "oblong"),
)
def test_conv2d_oblong(context: Context, case: KindCase) -> None:
    """On a convolution with a kernel, stride and padding of its own for each direction, it is that of its patches."""
    _starts_and_computes(context, case)


@check(
    "layers",
    "critical",
    title="over a quantised weight the adapter is not the equation's",
    **_of("quantised"),
)
def test_quantised(context: Context, case: KindCase) -> None:
    """Over a quantised weight (of the libraries that are installed), it is the equation of the dequantised one."""
    _starts_and_computes(context, case)


UNDROPPED = Diagnosis(
    "layers.undropped",
    "on this kind of layer dropout is accepted and does nothing",
    "on these layers the regularisation that the configuration asks for is absent",
    documented_by=(
        r"dropout.{0,40}(linear layers? (only|alone)|is ignored|does nothing|is not applied)",
        r"(no|without|ignor\w*) dropout.{0,40}(conv|layers?)",
    ),
    remedy="drop the input of the adapter's branch here as on a linear layer, or refuse dropout for this kind",
)


def _dropping(kind: str) -> dict[str, Any]:
    def strategy(variant: Variant) -> st.SearchStrategy[Any]:
        return of_kind(kind)(variant).map(lambda case: case.but(dropout=RATE, batch=(16,), dtype="float32"))

    return {
        **_of(kind),
        "failure_mode": UNDROPPED.failure_mode,
        "domain": Domain(strategy=strategy),
        "applies": lambda variant: variant.has_dropout,
        "follows": ("dropout.active", *AFFECTED, f"layers.{kind}"),
        "examples": FEW,
        "may_refuse": True,
    }


@check(
    "layers", "major", title="on a Conv1D dropout does nothing, or has another rate", **_dropping("conv1d")
)
def test_dropout_conv1d(context: Context, case: KindCase) -> None:
    """On a Conv1D, in training mode with p > 0, two masks give two outputs; entries are zeroed at that rate."""
    _drops(context, case)


@check(
    "layers",
    "major",
    title="on a convolution dropout does nothing, or has another rate",
    **_dropping("conv2d"),
)
def test_dropout_conv2d(context: Context, case: KindCase) -> None:
    """The same of a convolution."""
    _drops(context, case)


@check(
    "layers",
    "major",
    title="over a quantised weight dropout does nothing, or has another rate",
    **_dropping("quantised"),
)
def test_dropout_quantised(context: Context, case: KindCase) -> None:
    """The same over a quantised weight, where several libraries have a path of its own."""
    _drops(context, case)


def _drops(context: Context, case: KindCase) -> None:
    if not case.spec.dropout:
        raise NotOffered(f"dropout on {case.what}", "layers")
    layer = far(context, case)
    layer.layer.train()
    first = masked(layer, case.x, 0)
    if all(alike(first, masked(layer, case.x, seed), SAME_MASK) for seed in (1, 2, 3)):
        quantity = f"outputs under four masks at p = {RATE}"
        raise Deviation(case, quantity, "different", "equal", diagnosis=UNDROPPED)
    _drops_as_asked(context, _readable(case))


WRONG_RATE = Diagnosis(
    "layers.wrong_rate",
    "on this kind of layer dropout has another rate than the one that was asked for",
    "these layers are regularised more or less than the configuration says, and than the linear ones are",
    remedy="hand the rate of the configuration on to the dropout of this kind of layer",
)


CHANNELS = Diagnosis(
    "layers.channels_dropped",
    "on a convolution whole channels of an image are dropped instead of entries",
    "a channel is there or missing at every place of an image at once: another regularisation, of the same rate",
    documented_by=("dropout2d", r"(whole|entire|drop\w*) channels?", r"channel.?wise dropout"),
    remedy="drop single entries, as nn.Dropout does, or say that whole channels are dropped",
)


def _whole_channels(case: KindCase, factors: Tensor) -> bool:
    """Whether an image's channel is zero at all of its places or at none; ``factors`` (masks, rows, channels)."""
    if case.kind != "conv2d":
        return False
    zero = (factors.abs() <= MASK_ENTRY).unflatten(1, (case.batch[0], -1))
    return bool(zero.any()) and torch.equal(zero.any(2), zero.all(2))


def _readable(case: KindCase) -> KindCase:
    """A layer of the kind whose output tells what its adapter's branch was given: its rank is that of its inputs."""
    sizes = {name: shapes_with(case.kind)[0][name] for name in ("in_features", "out_features")}
    spec = replace(case.spec, rank=sizes["in_features"])
    return replace(case, **sizes, kernel=1, stride=1, padding=0, spec=spec)


def _drops_as_asked(context: Context, case: KindCase) -> None:
    """Where the branch is given x with entries zeroed, the others are divided by 1 − p, and as many are zeroed."""
    layer = far(context, case)
    rows, W = case.rows(case.input), case.weight.double()
    b = None if case.bias_vector is None else case.bias_vector.double()
    values = layer.parameters()
    with torch.no_grad():
        weight, bias = paper.effective(context.forward, W, b, values, case.spec)
    beneath = case.variant.weight_beneath(W, values)
    layer.layer.train()
    back = torch.linalg.pinv((weight - beneath).mT)
    seen = [case.outputs(masked(layer, case.x, seed)) - rows @ beneath.mT - bias for seed in range(MASKS)]
    factors = torch.stack([change @ back / rows for change in seen])
    factor = kept_factor(factors)
    if _whole_channels(case, factors):
        dropped = "whole channels of an image zeroed"
        raise Deviation(
            case, f"entries of x at p = {RATE}", "each zeroed by itself", dropped, diagnosis=CHANNELS
        )
    if factor is None:
        return  # it drops something else, which the linear layers' own checks are about
    share = float((factors.abs() <= MASK_ENTRY).double().mean())
    off = abs(share - RATE) / (RATE * (1 - RATE) / factors.numel()) ** 0.5
    if abs(factor - 1 / (1 - RATE)) > MASK_ENTRY or off > STANDARD_ERRORS:
        expected, actual = _in_words(RATE, 1 / (1 - RATE)), _in_words(share, factor)
        raise Deviation(case, f"entries of x at p = {RATE}", expected, actual, diagnosis=WRONG_RATE)


def _in_words(share: float, factor: float) -> str:
    return f"{share:.2f} of them zeroed, the rest times {factor:.3g}"


OTHER_ACTS = Diagnosis(
    "layers.other_acts",
    "on this kind of layer it is not the chosen one of two adapters that acts, or not it alone",
    "switching adapters runs a model that nobody asked for",
    remedy="let only the adapters that are active add to the output here, each with its own tensors and scale",
)


def _two_on(kind: str) -> dict[str, Any]:
    return {
        **_of(kind),
        "title": "of two adapters on a layer of this kind the active one does not act as it does alone",
        "failure_mode": OTHER_ACTS.failure_mode,
        "applies": lambda variant: variant.base is None,
        "follows": (*AFFECTED, f"layers.{kind}", "lifecycle.output"),
        "examples": FEW,
        "may_refuse": True,
    }


@check("layers", "critical", **_two_on("conv1d"))
def test_two_conv1d(context: Context, case: KindCase) -> None:
    """Of two adapters on a Conv1D the active one acts and learns alone: its output and gradients are the equation's."""
    _each_alone(context, case)


@check("layers", "critical", **_two_on("embedding"))
def test_two_embedding(context: Context, case: KindCase) -> None:
    """The same of an embedding."""
    _each_alone(context, case)


@check("layers", "critical", **_two_on("conv2d"))
def test_two_conv2d(context: Context, case: KindCase) -> None:
    """The same of a convolution."""
    _each_alone(context, case)


@check("layers", "critical", **_two_on("quantised"))
def test_two_quantised(context: Context, case: KindCase) -> None:
    """The same over a quantised weight."""
    _each_alone(context, case)


def _each_alone(context: Context, case: KindCase) -> None:
    """One adapter after the other is switched on, and computes what the equation says of it."""
    need(context.subject, case.spec, ("add_adapter", "set_adapters"))
    first = adapted(context, case)
    beside = replace(case, spec=replace(case.spec, alpha=2 * case.spec.alpha + 1))
    second = _second(context, beside, first)
    first.write(case.far(dict.fromkeys(first.names)))
    second.write(replace(case, seed=case.seed + 1).far(dict.fromkeys(second.names)))
    both = {"default": (case, first), "b": (beside, second)}
    for name, other in (("default", "b"), ("b", "default")):
        context.calling("set_adapters", context.subject.set_adapters, first.adapted, (name,))
        try:
            _computes(context, *both[name])
        except Deviation as found:
            found.diagnosis = _who_acts(context, both[name], both[other]) or found.diagnosis
            found.witness = replace(found.witness, note=f"of default and b, {name} is switched on")
            raise
    _both_together(context, case, [Held(c.spec, layer.parameters()) for c, layer in both.values()], first)


TOGETHER = Diagnosis(
    "layers.together",
    "on this kind of layer two active adapters act together in another way than the references'",
    "what two adapters do together here is another model than on linear layers, and than elsewhere",
    remedy="put active adapters together on this kind of layer as on linear ones, or refuse more than one here",
)


def _both_together(context: Context, case: KindCase, active: Sequence[Held], layer: Kinds) -> None:
    """Switched on together, they answer as the references do of a linear layer with these weights."""
    try:
        context.calling("set_adapters", context.subject.set_adapters, layer.adapted, ("default", "b"))
    except (SubjectRaised, Unsupported):
        return  # one at a time, which the claims on linear layers are about
    actual = _rows(case, layer)
    rows, b = case.rows(case.input), None if case.bias_vector is None else case.bias_vector.double()
    right = [compose((case.weight.double(), b), active) for compose in compositions(case.spec.variant)]
    outputs = [rows @ W.mT * case.embed_scale + (0 if bias is None else bias) for W, bias in right]
    size = case.embed_scale * float(rows.norm() * sum(W.norm() for W, _ in right))
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype)) * size
    if not any(agrees(actual, output, unit) for output in outputs):
        expected, found = where_worst(actual, outputs[0])
        raise Deviation(case, "output of default and b together", expected, found, diagnosis=TOGETHER)


def _second(context: Context, case: KindCase, first: Kinds) -> Kinds:
    """A further adapter on the layer. Raises NotOffered where it is refused."""
    subject = context.subject
    with refusable(f"a second {case.spec.variant} on {case.what}"):
        found = context.calling("add_adapter", subject.add_adapter, first.adapted, "b", case.spec)
    return Kinds(as_layer(found, subject, "add_adapter"), case)


def _who_acts(
    context: Context, active: tuple[KindCase, Kinds], other: tuple[KindCase, Kinds]
) -> Diagnosis | None:
    """Whether the output is that of the other adapter, or of both."""
    case, layer = active
    actual, base = _rows(case, layer), _rows(case, case.base())
    own, its = (equation_at(context, *each)[0]["output"] for each in (active, other))
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(
        own.norm() + its.norm() + base.norm()
    )
    wrong = (its, own + its - base)
    return OTHER_ACTS if any(agrees(actual, output, unit) for output in wrong) else None


def _starts_and_computes(context: Context, case: KindCase) -> None:
    """In every shape; factors in a layout that is not known in one shape hide no fault in another."""
    unread: list[NoSlot] = []
    for each in in_every_shape(case):
        try:
            with raised_on(each):
                _starts_and_computes_there(context, context.abilities.fitted(each))
        except NoSlot as why:
            unread.append(why)
    if unread:
        raise unread[0]


def _starts_and_computes_there(context: Context, case: KindCase) -> None:
    layer = adapted(context, case)
    starts_at_the_base(context, case, layer)
    learns = _can_learn(case, layer)
    if case.tied:
        _head_untouched(context, case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    _computes(context, case, layer)
    _padding_rests(case, layer)
    if not learns:
        quantity = "the adapter's gradients at the start"
        raise Deviation(case, quantity, "not all zero", "zero", diagnosis=CANNOT_LEARN)


def _padding_rests(case: KindCase, layer: Kinds) -> None:
    """The padding's own column of A gets no gradient, as no row of a plain embedding's does."""
    if case.padding_idx is None:
        return
    gradient = layer.observe(case).get("gradient of A")
    if gradient is not None and bool(gradient[:, case.padding_idx].any()):
        found = f"{float(gradient[:, case.padding_idx].abs().max()):.3g}"
        quantity = "gradient of A at the padding token"
        raise Deviation(case, quantity, "zero", found, diagnosis=PADDING_LEARNS, alone=True)


CANNOT_LEARN = Diagnosis(
    "layers.never_trains",
    "on this kind of layer a fresh adapter gets no gradient at all: it never trains",
    "layers of this kind stay as they are, whatever the training",
    remedy="start one of the factors away from zero on this kind of layer, too",
)


def _can_learn(case: KindCase, layer: Kinds) -> bool:
    """Whether at the present parameters something of the adapter gets a gradient."""
    found = layer.observe(case)
    own = [found[name] for n in layer.names if (name := f"gradient of {n}") in found]
    return not own or any(bool(gradient.any()) for gradient in own) or learns_beside(layer.layer, case)


def _head_untouched(context: Context, case: KindCase) -> None:
    """A head that shares the embedding's weight computes as it did, adapted and folded."""
    base, head = case.base(), nn.Linear(case.out_features, case.in_features, bias=False)
    head.weight = base.weight
    x = torch.randn(2, case.out_features, generator=case.generator(5)).to(case.torch_dtype)
    with torch.no_grad():
        before = head(x)
        far(context, case, base)(case.x)
        same = rounding.same_values(head(x), before)
    context.demand(same, case, "output of the head that has the embedding's weight", "as before", "changed")


def _computes(context: Context, case: KindCase, layer: Kinds) -> None:
    """Output and gradients at the present parameters, against the equation on the rows."""
    actual = layer.observe(case)
    exact, noise = equation_at(context, case, layer)
    for name, value in exact.items():
        if name not in actual:
            continue
        floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(value.norm())
        try:
            context.judge(case, name, actual[name], value, floor, noise=functools.partial(noise, name))
        except Deviation as found:
            if name == "output" and layer.is_a_guess():
                raise Deviation(
                    case, name, "the equation's with A in blocks, or with one A", "neither"
                ) from None
            if name == "output":
                found.diagnosis = explain(context, case, layer, actual[name])
            elif name == "gradient of x":
                found.diagnosis = explain_gradient(context, case, layer, actual[name])
            found.alone = not is_the_linears(context, case, layer, name, actual[name])
            of_the_kind = found.alone or not adapts_linear(context.subject)
            if name == "output" and of_the_kind and found.diagnosis is None:
                found.diagnosis = kind_mistakes.explain(context, case, functools.partial(_answered, context))
            raise


def _answered(context: Context, case: KindCase) -> tuple[Kinds, Tensor]:
    """A layer far from its start, and its output as rows."""
    layer = far(context, case)
    return layer, layer.observe(case)["output"]


def _leaf_of(kind: str) -> dict[str, Any]:
    return {
        "title": "where the output of a layer of this kind is made to want a gradient the adapter fails, or is another",
        "failure_mode": "training with gradient checkpointing, for which a hook makes the embedding's output want a "
        "gradient, fails or follows another trajectory",
        "domain": Domain(strategy=of_kind(kind)),
        "against": ("paper",),
        "examples": 1,  # whatever the values
        "follows": (f"layers.{kind}", "contexts.leaf_output"),
        "diagnose": False,
    }


@check("layers", "major", **_leaf_of("conv1d"))
def test_leaf_conv1d(context: Context, case: KindCase) -> None:
    """On a Conv1D, a hook that calls requires_grad_() on the base's output, a leaf of the graph, changes nothing."""
    _leaf_changes_nothing(context, case)


@check("layers", "major", **_leaf_of("embedding"))
def test_leaf_embedding(context: Context, case: KindCase) -> None:
    """The same of an embedding, which transformers' enable_input_require_grads hooks in this way."""
    _leaf_changes_nothing(context, case)


@check("layers", "major", **_leaf_of("conv2d"))
def test_leaf_conv2d(context: Context, case: KindCase) -> None:
    """The same of a convolution."""
    _leaf_changes_nothing(context, case)


def _leaf_changes_nothing(context: Context, case: KindCase) -> None:
    wanted = _far_from_the_start(context, case, None)
    for name, value in _far_from_the_start(context, case, with_leaf_output(case.base())).items():
        unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
        size = unit * float(wanted[name].norm())
        context.judge(case, f"{name} where the base's output wants a gradient", value, wanted[name], size)


def _far_from_the_start(context: Context, case: KindCase, base: Any) -> rounding.Quantities:
    return far(context, case, base).observe(case, wants_gradient=False)


def _merge_of(kind: str, option: str | None = None) -> dict[str, Any]:
    computes = "layers." + "_".join(filter(None, (kind, (option or "").removeprefix("embed_"))))
    return {
        "title": f"{kind_mistakes.WORDS[kind]}, merged, is not the adapted layer",
        "failure_mode": "deployment runs another model than the one that was trained and evaluated",
        "domain": Domain(strategy=of_kind(kind, option)),
        "against": ("paper",),
        "examples": 2,
        "follows": (computes, "merge.weight", *(() if option is None else (f"layers.merge_{kind}",))),
        "diagnose": False,
        "may_refuse": True,
    }


MODE_IGNORED = Diagnosis(
    "layers.mode_ignored",
    "on this kind of layer the mode is accepted and makes no difference",
    "a checkpoint of this mode is another model here than on linear layers",
    remedy="let the layers of this kind take the mode as linear ones do, or refuse it there in a sentence",
)

WITHOUT_TOO = Diagnosis(
    "layers.in_any_mode",
    "on this kind of layer the adapter is not the equation's, with the variant's mode and without",
    "layers of this kind run and train as another model than the references' would",
    remedy="let the layers of this kind compute what linear ones do, or refuse them in a sentence",
)


def _modes(variant: Variant) -> tuple[str, ...]:
    return (*variant.modes, *((rank_stabilised.NAME,) if rank_stabilised.has_it(variant) else ()))


@check(
    "layers",
    "critical",
    title="on another kind of layer, in one of its modes, the adapter is not the equation's",
    failure_mode="a checkpoint of this mode is another model here than on linear layers",
    domain=Domain(strategy=of_kind("conv1d")),
    against=("paper",),
    applies=lambda variant: bool(_modes(variant)),
    examples=2,
    follows=(*AFFECTED, "shapes.modes", "scale.rank_stabilised", *(f"layers.{kind}" for kind in KINDS)),
    diagnose=False,
    may_refuse=True,
)
def test_modes(context: Context, case: KindCase) -> None:
    """In each of the variant's modes the adapter on another kind of layer is the equation's, far from its start."""
    linear = context.abilities.fitted(Case(case.spec, 6, 4, case.bias, (3,), "float32", case.seed))
    on = [name for name in _modes(context.variant) if _acts(context, linear, name)]
    if not on:
        raise NotOffered(f"{' and '.join(_modes(context.variant))} on linear layers", "layers")
    for name in on:
        there = replace(case, spec=context.variant.option(name).put(case.spec, True))
        on_each_kind(context, there, KINDS, functools.partial(_computes_in, name))


def _acts(context: Context, linear: Case, mode: str) -> bool:
    """Whether the subject has the mode on linear layers. Raises Unsupported, as any layer that is not offered."""
    there = linear.but(**{mode: True})
    with raised_on(there):
        return not mode_is_ignored(context, there, [mode])


def _computes_in(mode: str, context: Context, case: KindCase) -> None:
    layer = far(context, case)
    try:
        _computes(context, case, layer)
    except Deviation as found:
        plain = replace(case, spec=context.variant.option(mode).put(case.spec, False))
        exact = equation_at(context, plain, layer)[0]["output"]
        unit = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact.norm())
        same = agrees(layer.observe(case)["output"], exact, unit)
        found.diagnosis = MODE_IGNORED if same else found.diagnosis or _without_it_too(context, plain)
        raise


def _without_it_too(context: Context, plain: KindCase) -> Diagnosis | None:
    """Whether the layer is as wrong without the mode."""
    try:
        _computes(context, plain, far(context, plain))
    except Deviation:
        return WITHOUT_TOO
    except (NotTold, SubjectRaised, BadAnswer):
        pass
    return None


HALVES = ("conv1d", "embedding", "conv2d")


def _of_half(follows: tuple[str, ...]) -> dict[str, Any]:
    return {
        "failure_mode": "half-precision models that have such layers fail, or go on in another dtype",
        "domain": Domain(strategy=in_dtype("bfloat16")),
        "against": ("paper",),
        "examples": 2,
        "follows": follows,
        "diagnose": False,
        "may_refuse": True,
    }


@check(
    "layers",
    "major",
    title="on another kind of layer in half precision the adapter is another, or answers in another dtype",
    **_of_half((*AFFECTED, "dtype.output", "dtype.taken", *(f"layers.{kind}" for kind in HALVES))),
)
def test_half(context: Context, case: KindCase) -> None:
    """On other kinds of layers in bfloat16 the output is the equation's within rounding, and of the base's dtype."""
    on_each_kind(context, case, HALVES, _computes_in_half)


def _computes_in_half(context: Context, case: KindCase) -> None:
    layer = _half(context, case)
    with torch.no_grad():
        wanted, y = case.base()(case.x).dtype, layer(case.x)
    context.demand(y.dtype == wanted, case, "dtype of the output", wanted, y.dtype)
    _as_the_equation(context, case, layer, "output", y)


@check(
    "layers",
    "major",
    title="on another kind of layer in half precision the merged layer is another, or has another dtype",
    **_of_half(("merge.half", "merge.weight", "layers.half", *(f"layers.merge_{kind}" for kind in HALVES))),
)
def test_merge_half(context: Context, case: KindCase) -> None:
    """Merged there, the weight keeps its dtype and the layer computes what the adapted one does."""
    need(context.subject, case.spec, ("merge",))
    on_each_kind(context, case, HALVES, _folds_in_half)


def _folds_in_half(context: Context, case: KindCase) -> None:
    layer = _half(context, case)
    with refusable(f"merging {case.what}"):
        folded = context.calling("merge", context.subject.merge, layer.adapted)
    wanted, dtype = case.torch_dtype, getattr(getattr(folded, "weight", None), "dtype", None)
    context.demand(dtype == wanted, case, "dtype of the merged weight", wanted, dtype)
    with torch.no_grad():
        y = context.calling("the merged layer", folded, case.x)
    _as_the_equation(context, case, layer, "output of the merged layer", y)


def _half(context: Context, case: KindCase) -> Kinds:
    """The subject on the layer in bfloat16, far from its start. Raises NotOffered where it takes no such dtype."""
    if case.dtype != "bfloat16":
        raise NotOffered("bfloat16", "layers")
    return far(context, case)


def _as_the_equation(
    context: Context, case: KindCase, layer: Kinds, what: str, y: Tensor, times_quantised: int = 0
) -> None:
    """``times_quantised``: how often a quantised weight may have been quantised anew on the way to ``y``."""
    exact, noise = equation_at(context, case, layer)
    floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact["output"].norm())
    if case.kind == "quantised" and times_quantised:
        floor += times_quantised * quantising_error(context, case, layer, exact["output"])
    rows = case.outputs(y).double()
    try:
        context.judge(case, what, rows, exact["output"], floor, noise=lambda: noise("output"))
    except Deviation as found:
        found.diagnosis = explain(context, case, layer, rows)
        raise


CHANGED_BY_EVALUATING = Diagnosis(
    "layers.changed_by_evaluating",
    "evaluating changes this kind of layer: back in training mode it computes another function than before",
    "each evaluation during training leaves another model than the one that was trained",
    remedy="take out on this kind of layer exactly what evaluation mode put in, or leave the weight as it is",
)


@check(
    "layers",
    "critical",
    title="on another kind of layer evaluation mode is not the equation's, or changes what training goes on with",
    failure_mode="what is evaluated and deployed is another model than the one that is trained",
    domain=Domain(strategy=of_kind("conv1d")),
    against=("paper",),
    examples=2,
    follows=(*AFFECTED, "forward.eval_mode", *(f"layers.{kind}" for kind in KINDS)),
    diagnose=False,
    may_refuse=True,
)
def test_evaluation(context: Context, case: KindCase) -> None:
    """On other kinds of layers, square or not, evaluation mode without dropout computes the equation, there and back.

    Libraries that fold the update into the weight on eval() have a way of folding for each kind.
    """
    on_each_kind(context, case, KINDS, _evaluates, both=True)


STAGES = ((True, "in training mode"), (False, "in evaluation mode"), (True, "back in training mode"))


def _evaluates(context: Context, case: KindCase) -> None:
    layer = far(context, case)
    for switched, (mode, words) in enumerate(STAGES):
        layer.layer.train(mode)
        with torch.no_grad(), situation(words):
            y = layer(case.x)
        if not mode and _base_has_modes(case):
            continue
        try:
            _as_the_equation(context, case, layer, f"output {words}", y, switched)
        except Deviation as found:
            if (mode, words) == STAGES[-1]:
                found.diagnosis = CHANGED_BY_EVALUATING
            raise


def _base_has_modes(case: KindCase) -> bool:
    """Whether the base itself answers otherwise in evaluation mode, as a layer that rounds its input there does."""
    base = case.base()
    with torch.no_grad():
        trained, evaluated = base.train()(case.x), base.eval()(case.x)
    return not rounding.same_values(evaluated, trained)


@check("layers", "critical", **_merge_of("conv1d"))
def test_merge_conv1d(context: Context, case: KindCase) -> None:
    """Where merging is offered, a folded Conv1D computes what the adapted one does; and so, in place and taken out."""
    _folds_square_or_not(context, case)


@check("layers", "critical", **_merge_of("embedding"))
def test_merge_embedding(context: Context, case: KindCase) -> None:
    """The same of an embedding."""
    _folds_square_or_not(context, case)


@check("layers", "critical", **_merge_of("embedding", "embed_scale"))
def test_merge_embedding_scale(context: Context, case: KindCase) -> None:
    """The same of an embedding whose output is scaled."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("embedding", "tied"))
def test_merge_embedding_tied(context: Context, case: KindCase) -> None:
    """The same of an embedding that is tied to a head."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("conv2d"))
def test_merge_conv2d(context: Context, case: KindCase) -> None:
    """The same of a convolution."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("conv2d", "dilation"))
def test_merge_conv2d_dilation(context: Context, case: KindCase) -> None:
    """The same of a dilated convolution."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("conv2d", "groups"))
def test_merge_conv2d_groups(context: Context, case: KindCase) -> None:
    """The same of a convolution with groups."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("conv2d", "padding_mode"))
def test_merge_conv2d_padding_mode(context: Context, case: KindCase) -> None:
    """The same of a convolution that pads with other than zeros."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("conv2d", "oblong"))
def test_merge_conv2d_oblong(context: Context, case: KindCase) -> None:
    """The same of a convolution that is not the same in both directions."""
    _folds(context, case)


@check("layers", "critical", **_merge_of("quantised"))
def test_merge_quantised(context: Context, case: KindCase) -> None:
    """The same of a quantised layer, which is no further off than quantising the merged weight is."""
    _folds(context, case)


def _folds_square_or_not(context: Context, case: KindCase) -> None:
    """Of a weight that is stored (in, out), also with as many outputs as inputs: the other way round fits as well."""
    _folds(context, case)
    _folds_there(context, square(case))


def _folds(context: Context, case: KindCase) -> None:
    for each in in_every_shape(case):
        with raised_on(each):
            _folds_there(context, context.abilities.fitted(each))


def _folds_there(context: Context, case: KindCase) -> None:
    """Merged, the layer computes what the adapted one does.

    Folded in place and unmerged, where that is offered, the layer computes that, too.
    """
    if not takes(context, case):
        raise NotOffered(f"{case.spec.variant} on {case.kind} layers", "layers")
    in_place = offers_folding(context.subject, case.spec)
    if not in_place or offers(context.subject, case.spec, "merge"):
        _exports(context, case)
    if in_place:
        _unfolds(context, case)


def _exports(context: Context, case: KindCase) -> None:
    """What ``merge`` gives computes what the adapted layer does."""
    need(context.subject, case.spec, ("merge",))
    layer, folded = _folded(context, case)
    y = _merged_answers(context, case, folded)
    exact, noise = equation_at(context, case, layer)
    floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact["output"].norm())
    if case.kind == "quantised":
        floor += quantising_error(context, case, layer, exact["output"])
    try:
        context.judge(
            case, "output of the merged layer", y, exact["output"], floor, noise=lambda: noise("output")
        )
    except Deviation as found:
        found.diagnosis = merged_without(case, folded) or explain(context, case, layer, y)
        found.alone = not merges_as_the_linear(context, case, layer, y)
        if found.alone and found.diagnosis is None:
            ask = functools.partial(_exported, context)
            found.diagnosis = kind_mistakes.explain(context, case, ask, merged=True)
        raise


def _exported(context: Context, case: KindCase) -> tuple[Kinds, Tensor]:
    """A layer far from its start, and what its merged form answers, as rows."""
    layer, folded = _folded(context, case)
    return layer, _merged_answers(context, case, folded)


def _folded(context: Context, case: KindCase) -> tuple[Kinds, Callable[[Tensor], Tensor]]:
    """A layer far from its start, and what it is merged into."""
    layer = far(context, case)
    with refusable(f"merging {case.what}"):
        return layer, context.calling("merge", context.subject.merge, layer.adapted)


def _merged_answers(context: Context, case: KindCase, folded: Callable[[Tensor], Tensor]) -> Tensor:
    """What the merged layer answers, as rows."""
    try:
        with torch.no_grad():
            return case.outputs(context.calling("the merged layer", folded, case.x)).double()
    except SubjectRaised as error:
        if told := merged_without(case, folded):
            raise Deviation(case, "the merged layer", "an answer", str(error), diagnosis=told) from None
        raise


UNMERGED_OTHERWISE = Diagnosis(
    "layers.unmerged_otherwise",
    "on another kind of layer unmerging does not take out what merging folded in",
    "after an evaluation that merges, the model is another one",
    remedy="subtract on this kind of layer what merging added there, or keep the weight from before and put it back",
)


def _unfolds(context: Context, case: KindCase) -> None:
    """Merged in place, and taken out again, the layer computes what it did."""
    subject = context.subject
    layer = far(context, case)
    exact, noise = equation_at(context, case, layer)
    floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact["output"].norm())
    error = quantising_error(context, case, layer, exact["output"]) if case.kind == "quantised" else 0.0
    before = _rows(case, layer)
    try:
        context.calling("merge_in_place", subject.merge_in_place, layer.adapted)
    except (SubjectRaised, Unsupported) as why:
        if is_crash(why):
            raise
        return  # what is refused has changed nothing that unmerging would take out
    judge = functools.partial(context.judge, case, noise=lambda: 2 * noise("output"))
    y = _rows(case, layer)
    try:
        judge("output after merging in place", y, before, 2 * floor + error)
    except Deviation as found:
        found.diagnosis = explain(context, case, far(context, case), y)
        raise
    context.calling("unmerge", subject.unmerge, layer.adapted)
    after = _rows(case, layer)
    try:
        judge("output after unmerging", after, before, 2 * (floor + error))
    except Deviation as found:
        if agrees(after, _rows(case, case.base()), floor):
            found.diagnosis = life_faults.LOST_BY_UNMERGING
            raise
        plain = context.abilities.ordinary
        everywhere = plain is not None and leaves_a_rest(context, plain)
        found.diagnosis = life_faults.UNMERGED_OTHERWISE if everywhere else UNMERGED_OTHERWISE
        raise


def _rows(case: KindCase, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """What a layer answers the case's x, as rows; float64."""
    with torch.no_grad():
        return case.outputs(layer(case.x)).double()

"""Merge and detach: the folded layer is the effective one, and taking the adapter off gives the base back."""

from __future__ import annotations

import functools

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.cases.layer_cases import Case, Domain
from harness.cases.tiny_models import ModelCase, heads, logits
from harness.compare import in_one_state, rank_stabilised, rounding
from harness.compare.adapted_model import AdaptedModel, far, offers_models, subject_on
from harness.compare.context import Context, double
from harness.compare.kinds import refusable
from harness.compare.layer import Layer, SubjectRaised, answering
from harness.compare.life_model import completed
from harness.compare.outcome import Deviation, NoSlot, NotApplicable, NotOffered
from harness.compare.probing import beneath, coefficient, effective, far_layer, plain_layer
from harness.compare.thresholds import ROUNDOFFS, SAME_UPDATE
from harness.engine.checks import check
from oracles.implementation import AdapterSpec, Implementation
from oracles.seeding import seed_torch
from oracles.variants import Variant, paper
from reports.model import Diagnosis


def told(id_: str, summary: str, remedy: str) -> Diagnosis:
    """What a merged layer that is wrong turned out to be."""
    return Diagnosis(
        f"merge.{id_}",
        summary,
        "what is deployed would answer as another model",
        remedy=remedy,
    )


IS_BASE = told(
    "is_base",
    "the merged layer is the base, without the adapter",
    "add the adapter's update to the merged weight",
)
NEGATED = told(
    "negated",
    "the adapter is merged with the wrong sign",
    "add the update to the weight instead of subtracting it",
)
TWICE = told(
    "twice", "the adapter is merged twice", "add the update once, and not to a weight that has it already"
)
FACTOR = told(
    "factor",
    "the adapter is merged with another factor than it acts with",
    "multiply the merged update by the factor of the forward pass",
)
BIAS_LOST = told(
    "bias_lost", "the merged layer has lost the bias", "carry the bias over into the merged layer"
)
BIAS_OF_BASE = told(
    "bias_of_base",
    "the merged layer's bias is the base's, where the adapter changes it",
    "change the merged bias as the forward pass changes it",
)
BIAS_FACTOR = told(
    "bias_factor",
    "the adapter's part of the bias is merged with another factor than it acts with",
    "multiply what is added to the merged bias by the factor of the forward pass",
)
FURTHER = 0.25  # how far a tensor that only the subject has is moved, in units of its entries
NAMED_FACTORS = {0: IS_BASE, -1: NEGATED, 2: TWICE}


@check(
    "merge",
    "critical",
    title="the merged layer is not the adapted one",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    against=("paper",),
    follows=("forward.linear", "forward.random_parameters", "forward.modes", "forward.base_kept"),
    diagnose=False,
)
def test_weight(context: Context, case: Case) -> None:
    """The merged layer's weight and bias are the effective ones of the adapted layer, and it computes the same.

    What the library trains under names of its own is moved from its start, too: a bias of zeros hides how it is merged.
    """
    layer = far_layer(context, case)
    layer.write(_further_moved(context, case, layer))
    _merged(context, case, layer)


def _further_moved(context: Context, case: Case, layer: Layer) -> dict[str, Tensor]:
    """Values beside the start for the trained tensors that no reference has."""
    known, generator = {t.name for t in context.variant.tensors}, case.generator(8)
    own = [n for n in layer.names if n not in known and layer.raw(n).requires_grad]
    found = {n: layer.value(n) for n in own}
    return {n: v + FURTHER * torch.randn(v.shape, generator=generator).double() for n, v in found.items()}


@check(
    "merge",
    "critical",
    title="in one of its modes the merged layer is not the adapted one",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    against=("paper",),
    modes=True,
    follows=(
        "merge.weight",
        "shapes.modes",
        "forward.linear",
        "forward.random_parameters",
        "forward.modes",
        "forward.base_kept",
    ),
    diagnose=False,
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode the merged layer is the adapted one."""
    _merged(context, case, far_layer(context, case))


@check(
    "merge",
    "critical",
    title="with rank-stabilised scaling the merged layer is not the adapted one",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    domain=rank_stabilised.DRAWN,
    against=("paper",),
    applies=rank_stabilised.has_it,
    examples=4,
    follows=("merge.weight", "scale.rank_stabilised", "forward.linear", "forward.base_kept"),
    diagnose=False,
    may_refuse=True,
)
def test_rank_stabilised(context: Context, case: Case) -> None:
    """With α/√r in place of α/r the merged layer is the adapted one."""
    rank_stabilised.is_offered(context, case)
    _merged(context, case, far_layer(context, case))


@check(
    "merge",
    "critical",
    title="merged at the start, the layer is not the adapted one",
    failure_mode="an adapter that is merged before it has been trained gives another model",
    against=("paper",),
    examples=4,
    follows=(
        "merge.weight",
        "forward.linear",
        "forward.random_parameters",
        "forward.modes",
        "forward.base_kept",
    ),
    diagnose=False,
)
def test_at_init(context: Context, case: Case) -> None:
    """A fresh adapter that is merged gives the layer that it is."""
    _merged(context, case, context.layer(case))


@check(
    "merge",
    "critical",
    title="merged in training mode with dropout, the layer is not the one that evaluation answers with",
    failure_mode="what is deployed depends on the mode in which it was merged, or on a mask",
    domain=Domain(dtypes=("float32",), dropout=0.4),
    against=("paper",),
    applies=lambda variant: variant.has_dropout,
    examples=4,
    follows=(
        "merge.weight",
        "forward.linear",
        "forward.base_kept",
        "forward.eval_mode",
        "dropout.off_in_eval",
        "forward.random_parameters",
        "forward.modes",
    ),
    diagnose=False,
)
def test_in_training(context: Context, case: Case) -> None:
    """Merged in training mode with p > 0, the layer is what the adapted one is in evaluation mode."""
    layer, twin = far_layer(context, case), far_layer(context, case)
    twin.write(layer.values())
    layer.train()
    twin.train(False)
    try:
        _merged(context, case, layer, effective(twin, case))
    except Deviation as found:
        found.diagnosis = MASK_MERGED if _is_drawn(context, case) else found.diagnosis
        raise


MASK_MERGED = Diagnosis(
    "merge.mask",
    "merging in training mode folds in what dropout leaves of the adapter at that moment",
    "what is deployed lacks entries of the update, and has the others too large by 1/(1 − p): others at each export",
    remedy="merge what evaluation mode computes, whatever the mode of the layer",
)


def _is_drawn(context: Context, case: Case) -> bool:
    """Whether merging in training mode gives another weight with each state of torch's generator."""
    weights = []
    for seed in range(1, 13):
        layer = far_layer(context, case)
        layer.train()
        seed_torch(case.seed + seed)
        merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
        weights.append(merged.weight.detach())
    return not all(torch.equal(weights[0], each) for each in weights[1:])


def _merged(context: Context, case: Case, layer: Layer, wanted: tuple[Tensor, Tensor] | None = None) -> None:
    """Raise Deviation unless the layer merges into one with the effective weight and bias ``wanted``."""
    weight, bias = wanted or effective(layer, case)
    base = beneath(context, case, layer)
    values = layer.values()  # merging may change them
    merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
    own = torch.zeros_like(bias) if merged.bias is None else merged.bias.detach().double()
    x = case.x.double()
    size = float(torch.linalg.matrix_norm(weight)) + float(torch.linalg.matrix_norm(case.weight.double()))
    shift = float(torch.linalg.vector_norm(bias))
    judge = functools.partial(_judge_merged, context, case)

    def might_be_right() -> bool:
        right = _right(context, case, values, base, None if wanted else (weight, bias))
        return right is None or (_near(merged.weight.detach().double(), right[0]) and _near(own, right[1]))

    try:
        judge("merged weight", merged.weight.detach().double(), weight, 2 * (size + shift))
    except Deviation as found:
        found.alone = not might_be_right()
        found = _named(found, merged.weight.detach().double() - base, weight - base)
        if wanted is None and found.diagnosis in (None, FACTOR, TWICE):
            found.diagnosis = in_one_state.explain_merged(context, case) or _everywhere(context, case, found)
        raise found from None
    try:
        judge("merged bias", own, bias, shift)
    except Deviation as found:
        found.alone = not might_be_right()
        found = _named_bias(found, case, own, bias)
        if found.diagnosis is None and wanted is None:
            found.diagnosis = in_one_state.explain_merged(context, case)
        raise found from None
    with torch.no_grad():
        y = context.calling("the merged layer", merged, case.x)
    judge(
        "output of the merged layer",
        y.double(),
        x @ weight.mT + bias,
        float(torch.linalg.vector_norm(x)) * size + shift,
    )


def _right(
    context: Context, case: Case, held: dict[str, Tensor], W: Tensor, own: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """W' and b' by the equation of what a layer over ``W`` held.

    Where they are what is merged, the forward pass alone is wrong; where they are not, merging is for itself. None
    where that cannot be told, or where the layer is not affine, so that ``own`` weight and bias are not its.
    """
    b = case.bias_vector
    try:
        values = completed(held, case.weight.double(), case.spec)
        right = paper.effective(context.forward, W, None if b is None else b.double(), values, case.spec)
        twin = context.layer(case)
        twin.write(held)
        with torch.no_grad():
            y = twin(case.x).double()
    except (NoSlot, KeyError, RuntimeError, SubjectRaised):
        return None
    affine = own is None or _near(y, case.x.double() @ own[0].mT + own[1])
    return right if affine else None


def _near(actual: Tensor, expected: Tensor) -> bool:
    same_shape = actual.shape == expected.shape
    return same_shape and float((actual - expected).norm()) <= SAME_UPDATE * float(expected.norm())


def _judge_merged(
    context: Context, case: Case, what: str, actual: Tensor, exact: Tensor, operands: float
) -> None:
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    own = unit * float(torch.linalg.vector_norm(exact))
    context.judge(case, what, actual, exact, own, noise=lambda: unit * context.amplification(case) * operands)


def _named(found: Deviation, actual: Tensor, update: Tensor) -> Deviation:
    """The deviation with its name, where what was merged is a multiple of the update."""
    if actual.shape != update.shape or not bool(update.any()):
        return found
    c = coefficient(actual, update)
    rest = float(torch.linalg.vector_norm(actual - c * update))
    if rest > SAME_UPDATE * float(torch.linalg.vector_norm(update)):
        return found
    named = {n: d for n, d in NAMED_FACTORS.items() if abs(c - n) < SAME_UPDATE}
    found.diagnosis = next(iter(named.values()), FACTOR)
    return found.with_note(f"what was merged is {c:.4g} times the adapter's change of the weight")


def _everywhere(context: Context, case: Case, found: Deviation) -> Diagnosis | None:
    """The deviation's name; twice only where it is so at another rank and alpha, too."""
    if found.diagnosis is not TWICE:
        return found.diagnosis
    fresh = context.abilities.fitted(case.but(**in_one_state.FRESH))
    layer = far_layer(context, fresh)
    wanted, base = effective(layer, fresh)[0], beneath(context, fresh, layer)
    weight, _ = in_one_state.merged_into(context, fresh, layer)
    return TWICE if _near(weight - base, 2 * (wanted - base)) else FACTOR


def _named_bias(found: Deviation, case: Case, own: Tensor, bias: Tensor) -> Deviation:
    """The deviation of a merged bias (out,) with its name: lost, the base's, or a multiple of what the adapter adds."""
    b = torch.zeros_like(bias) if case.bias_vector is None else case.bias_vector.double()
    if case.bias_vector is not None and torch.equal(own, b):
        found.diagnosis = BIAS_OF_BASE
    elif not own.any():
        found.diagnosis = BIAS_LOST
    elif len(bias) > 1 and bool((bias - b).any()):
        c = coefficient(own - b, bias - b)
        if _near(own - b, c * (bias - b)):
            found.diagnosis = BIAS_FACTOR
            return found.with_note(f"what was merged is {c:.4g} times the adapter's change of the bias")
    return found


@check(
    "merge",
    "major",
    title="merging changes the adapted layer",
    failure_mode="what is trained, evaluated or merged after a first merge is another layer",
    against=("paper",),
    examples=4,
    follows=("forward.base_kept", "forward.random_parameters", "forward.modes"),
    diagnose=False,
)
def test_untouched(context: Context, case: Case) -> None:
    """Merged twice, the second layer is the first; and the adapted layer holds and computes what it did.

    Where merging folds in place, as PEFT's merge_and_unload does, only the second merge is looked at.
    """
    layer = far_layer(context, case)
    values = layer.values()
    with torch.no_grad():
        before = layer(case.x).double()
    merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
    first = merged.weight.detach().double().clone()
    if not _is_part_of(merged, layer):
        _as_before(context, case, layer, values, before)
    again = _merged_again(context, layer).weight.detach().double()
    size = float(torch.linalg.matrix_norm(first)) + float(torch.linalg.matrix_norm(case.weight.double()))
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    context.judge(case, "weight of a second merge", again, first, unit * size)


def _is_part_of(merged: nn.Linear, layer: Layer) -> bool:
    """Whether the merged layer is the adapted one, or holds its tensors: folded in place, the adapter taken off."""
    own = [*layer.module.parameters(), *layer.module.buffers(), *(layer.raw(name) for name in layer.names)]
    held = {t.untyped_storage().data_ptr() for t in own}
    return merged is layer.module or merged.weight.untyped_storage().data_ptr() in held


def _merged_again(context: Context, layer: Layer) -> nn.Linear:
    try:
        found = context.calling("merge", context.subject.merge, layer.adapted)
    except SubjectRaised:
        raise NotApplicable(
            "merging takes the adapter off: there is nothing to merge a second time"
        ) from None
    return plain_layer(found, "merge")


def _as_before(context: Context, case: Case, layer: Layer, values: dict[str, Tensor], before: Tensor) -> None:
    """Raise Deviation unless the adapted layer holds ``values`` and answers ``before``."""
    for name, value in values.items():
        held = name in layer.names and rounding.same_values(layer.value(name), value)
        context.demand(held, case, f"{name} after a merge", "as before", "changed")
    with torch.no_grad():
        after = layer(case.x).double()
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    noise = unit * context.amplification(case) * float(torch.linalg.vector_norm(case.x.double()))
    size = float(torch.linalg.vector_norm(before))
    weight = float(torch.linalg.matrix_norm(case.weight.double()))
    context.judge(
        case, "output of the adapted layer after a merge", after, before, unit * size + noise * weight
    )


@check(
    "merge",
    "major",
    title="detaching after a merge does not give back the base layer",
    failure_mode="the base model is damaged by having been merged once",
    against=("paper",),
    examples=4,
    follows=(
        "merge.detach",
        "merge.untouched",
        "forward.random_parameters",
        "forward.modes",
        "forward.base_kept",
    ),
    diagnose=False,
)
def test_detach_after(context: Context, case: Case) -> None:
    """Detached after a merge, weight and bias are bitwise the base's as before adapt.

    Not asked where merging folds in place and takes the adapter off.
    """
    layer = far_layer(context, case)
    merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
    if _is_part_of(merged, layer):
        raise NotApplicable("merging folds in place: no adapted layer is left to detach from")
    _detached(context, case, layer)


@check(
    "merge",
    "major",
    title="in half precision the merged layer is not the adapted one, or has another dtype",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    domain=Domain(dtypes=("bfloat16", "float16"), sizes=(3, 9), square=True),
    against=("paper",),
    examples=8,
    follows=(
        "merge.weight",
        "dtype.output",
        "forward.random_parameters",
        "forward.modes",
        "forward.base_kept",
    ),
    diagnose=False,
)
def test_half(context: Context, case: Case) -> None:
    """In bf16 and fp16 the merged weight is the effective one up to rounding of its terms, in the base's dtype."""
    pair = context.pair(case, "far")
    W, _ = effective(pair.theirs, double(case), torch.float64)
    merged = plain_layer(context.calling("merge", context.subject.merge, pair.ours.adapted), "merge")
    if merged.weight.dtype != case.torch_dtype:
        actual = str(merged.weight.dtype).removeprefix("torch.")
        raise Deviation(
            case, "dtype of the merged weight", case.dtype, actual, diagnosis=MERGED_IN_ANOTHER_DTYPE
        )
    floor = rounding.roundoff(case.torch_dtype) * float(torch.linalg.matrix_norm(W))
    noise = functools.cache(lambda: sum(context.effective_noise(pair).values()))
    context.judge(case, "merged weight", merged.weight.detach().double(), W, floor, "precision", noise=noise)


MERGED_IN_ANOTHER_DTYPE = Diagnosis(
    "merge.another_dtype",
    "a layer in half precision is merged into one of another dtype",
    "the merged model has layers of two dtypes: the next layer raises, or promotes what comes after it",
    remedy="give the merged weight the dtype of the base's",
)


@check(
    "merge",
    "major",
    title="detaching does not give back the base layer",
    failure_mode="the base model is damaged by having been adapted once",
    against=("paper",),
    follows=("forward.base_kept",),
    diagnose=False,
)
def test_detach(context: Context, case: Case) -> None:
    """After detach, weight and bias are bitwise the base's as before adapt, and the layer computes as the base does."""
    base = case.base()
    with torch.no_grad():
        before = base(case.x)
    found = _detached(context, case, far_layer(context, case))
    with torch.no_grad():
        context.demand(
            rounding.same_values(found(case.x), before),
            case,
            "the output after detach",
            "bitwise the base's",
            "changed",
        )


def _apart(actual: Tensor, exact: Tensor) -> str:
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}"
    return f"up to {float((actual.detach() - exact).abs().max()):.3g} away"


def _detached(context: Context, case: Case, layer: Layer) -> nn.Linear:
    """What ``detach`` gives, its weight and bias bitwise the base's."""
    found = plain_layer(context.calling("detach", context.subject.detach, layer.adapted), "detach")
    same = torch.equal(found.weight.detach(), case.weight)
    context.demand(
        same, case, "the weight after detach", "bitwise the base's", _apart(found.weight, case.weight)
    )
    if case.bias_vector is not None:
        same = found.bias is not None and torch.equal(found.bias.detach(), case.bias_vector)
        context.demand(same, case, "the bias after detach", "bitwise the base's", "changed")
    return found


MERGED = ("llama", "gpt2", "t5_gated", "bert")


def whole(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """Small models at the variant's default targets: GPT-2 stores its weights transposed."""
    spec = AdapterSpec(variant.id, rank=2, alpha=3.0)
    return st.sampled_from([ModelCase(spec, name, seed=i) for i, name in enumerate(MERGED)])


TIED_TOO = Diagnosis(
    "merge.tied_too",
    "a layer's update is merged into a weight that it shares with another: the other changes with it",
    "deployment would run another model than the one that was trained and evaluated: with the head the embedding moved",
    remedy="untie the weight before merging into it (a copy of its own), or refuse layers whose weight is shared",
)


@check(
    "merge",
    "major",
    title="the merged model is not the adapted one",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    domain=Domain(strategy=whole),
    against=("paper",),
    examples=2 * len(MERGED),
    follows=("merge.weight", "targets.model_forward"),
    diagnose=False,
)
def test_model(context: Context, case: ModelCase) -> None:
    """With every adapter of a model far from its start, the merged model's logits are the adapted one's."""
    if type(context.subject).merge_model is Implementation.merge_model or not offers_models(context.subject):
        raise NotOffered(f"{context.subject.name} offers no merging of whole models", "merge_model")
    ours = subject_on(context, case)
    ours.write(far(ours, case))
    ours.model.eval()
    with torch.no_grad():
        with answering(ours.who, "the adapted model's forward", of=case.architecture):
            wanted = logits(ours.model, case).double()
        with (
            refusable(f"merging a whole {case.architecture}", "merge_model"),
            answering(ours.who, f"merge_model of {case.architecture}"),
        ):
            merged = context.subject.merge_model(ours.model)
        with answering(ours.who, "the merged model's forward", of=case.architecture):
            actual = logits(merged.eval(), case).double()
    unit = rounding.roundoff(torch.float32) * float(torch.linalg.vector_norm(wanted))
    try:
        context.judge(
            case, "logits of the merged model", actual, wanted, ROUNDOFFS["layer of a model"] * unit
        )
    except Deviation as found:
        found.diagnosis = TIED_TOO if _moves_a_head(case, ours, merged) else None
        raise


def _moves_a_head(case: ModelCase, ours: AdaptedModel, merged: nn.Module) -> bool:
    """Whether the merged model has another output head or embedding, where that has no adapter."""
    kept = {f"{n}.weight": w for n, w in heads(case.base()).items() if n not in ours.layers}
    now = dict(merged.named_parameters(remove_duplicate=False))
    return any(not rounding.same_values(now[n].detach(), w) for n, w in kept.items() if n in now)

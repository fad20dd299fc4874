"""Dropout: active in training, off in evaluation, on the adapter branch's input and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, Pair
from harness.compare.dropped_elsewhere import drops_its_output, every_mask, place_under_own_masks
from harness.compare.held_outside import HELD_OUTSIDE, held_outside, stays_in_training
from harness.compare.layer import Layer
from harness.compare.outcome import Deviation, ModeMissing, ToldElsewhere
from harness.compare.probing import alike, beneath, effective, far_layer, masked, without_adapter
from harness.compare.thresholds import (
    EVALUATION_GAP,
    MASK_ENTRY,
    MASK_SHARE,
    NOTHING_DROPPED,
    OUTSIDE_SPAN,
    SAME_MASK,
    STANDARD_ERRORS,
    THRESHOLDS,
    WHOLE_MASK,
)
from harness.engine.checks import check
from harness.engine.diagnosis import described
from oracles.implementation import AdapterSpec, Unsupported
from oracles.mistakes import mistake
from oracles.seeding import seed_torch
from oracles.variants import Variant, paper
from reports.model import Diagnosis

RATE = 0.4
# Read from the output, which is all that is seen: the branch itself may well be given another x than this.
SEEN = f"the x_d with which the output is x W₀ᵀ + b + x_d (W' − W₀)ᵀ, at p = {RATE}"
WHOLE = "x, whole"
DROPPING = Domain(dtypes=("float32",), sizes=(2, 5), batches=((16,),), dropout=RATE, tall=True)
ROUNDS = 8


def _has_dropout(variant: Variant) -> bool:
    return variant.has_dropout


def dropping(context: Context, case: Case) -> Layer:
    """The subject with dropout, at parameters far from the start, in training mode."""
    try:
        layer = far_layer(context, case)
    except Unsupported as why:
        raise ModeMissing(why, "dropout") from why
    layer.train()
    return layer


def undropped(context: Context, case: Case) -> Case:
    """The case without dropout, or with the nearest to none that the subject can express."""
    nearest: Case = context.abilities.fitted(case.but(dropout=0.0))
    return nearest


def evaluates_steadily(layer: Layer, case: Case) -> None:
    """Raise ToldElsewhere where evaluation drops entries, too: what training drops cannot be read beside it then."""
    steady = _steady(layer, case)
    layer.train()
    if not steady:
        raise ToldElsewhere("evaluation mode is not deterministic", "dropout.off_in_eval")


def evaluated(layer: Layer, case: Case) -> Tensor:
    """The output in evaluation mode, the layer put back to training."""
    layer.train(False)
    with torch.no_grad():
        y = layer(case.x).double()
    layer.train()
    return y


@check(
    "dropout",
    "major",
    title="dropout is accepted and does nothing",
    failure_mode="the regularisation that the configuration asks for is absent",
    domain=DROPPING,
    applies=_has_dropout,
    examples=3,
    against=("peft",),
    follows=("scale.effective", "forward.random_parameters"),
)
def test_active(context: Context, case: Case) -> None:
    """In training mode with p > 0 two masks give two outputs."""
    layer = dropping(context, case)
    first = masked(layer, case.x, 1)
    varies = any(not alike(first, masked(layer, case.x, seed), SAME_MASK) for seed in (2, 3, 4))
    dropped = not alike(first, evaluated(layer, case), NOTHING_DROPPED)
    if not varies and _has_no_effect(layer, case):
        raise ToldElsewhere(NOTHING_TO_DROP, "forward.random_parameters")
    if not varies and dropped:
        raise Deviation(case, "masks of several calls", "different", "the same", diagnosis=ONE_MASK)
    if varies != _varies(context, case):
        told = None if varies else ignored_dropout(context.variant)
        quantity = f"outputs under two masks at p = {RATE}"
        raise Deviation(case, quantity, "different", "equal", diagnosis=told)


def ignored_dropout(variant: Variant) -> Diagnosis:
    """The catalogue's words; what shows it is that nothing is drawn, whatever else the layer computes."""
    return described(mistake(f"{variant.id}.dropout_ignored"), 1, 1)


NOTHING_TO_DROP = "the adapter changes nothing here, so that there is nothing to drop"
ONE_MASK = Diagnosis(
    "dropout.one_mask",
    "dropout draws the same mask at every call",
    "the same entries are missing throughout training: part of the input is cut off instead of regularised",
    remedy="draw a new mask from torch's generator at every call in training mode",
)


def _has_no_effect(layer: Layer, case: Case) -> bool:
    """Whether the output is the base's here, or stays the same when the adapter's parameters do not."""
    before = evaluated(layer, case)
    if alike(before, without_adapter(case, layer.values()), NOTHING_DROPPED):
        return True
    layer.write(case.but(seed=case.seed + 1).far(dict.fromkeys(layer.names)))
    return rounding.same_values(before, evaluated(layer, case))


def far_reference(context: Context, case: Case) -> Layer:
    """The oracle with dropout, at parameters far from the start, in training mode."""
    theirs = context.reference(case)
    theirs.train()
    theirs.write(case.far(dict.fromkeys(theirs.names)))
    return theirs


def _varies(context: Context, case: Case) -> bool:
    theirs = far_reference(context, case)
    return not alike(masked(theirs, case.x, 1), masked(theirs, case.x, 2), SAME_MASK)


@check(
    "dropout",
    "critical",
    title="dropout stays active in evaluation mode",
    failure_mode="inference would be random, or another function than the trained one",
    domain=DROPPING,
    applies=_has_dropout,
    examples=3,
    against=("peft",),
    follows=("forward.base_kept",),
)
def test_off_in_eval(context: Context, case: Case) -> None:
    """In evaluation mode the output is deterministic and equals that of a layer without dropout."""
    layer, plain = dropping(context, case), dropping(context, undropped(context, case))
    theirs = context.reference(case)
    theirs.write(case.far(dict.fromkeys(theirs.names)))
    mine = _steady(layer, case)
    if mine != _steady(theirs, case):
        told = HELD_OUTSIDE if stays_in_training(layer) and held_outside(layer, case.x) else None
        raise Deviation(case, "two evaluations", "equal", "different", diagnosis=told)
    if mine:
        without = evaluated(plain, case)
        size = float(without.abs().max())
        gap = float((_in_evaluation(layer, case) - without).abs().max())
        context.demand(
            gap <= EVALUATION_GAP * size,
            case,
            "evaluation with p > 0 against p = 0",
            "equal",
            f"{gap:.3g} apart",
        )


def _steady(layer: Layer, case: Case) -> bool:
    """Whether three calls in evaluation mode answer alike; the layer stays in it, since turns may do something."""
    layer.train(False)
    first = _in_evaluation(layer, case)
    return all(rounding.same_values(first, _in_evaluation(layer, case)) for _ in range(2))


def _in_evaluation(layer: Layer, case: Case) -> Tensor:
    with torch.no_grad():
        return layer(case.x).double()


@check(
    "dropout",
    "major",
    title="dropout acts on something else than the adapter branch's input alone, or with another mask",
    failure_mode="training would regularise something else than with the references",
    domain=DROPPING,
    applies=_has_dropout,
    examples=4,
    against=("peft",),
    follows=("dropout.active", "forward.base_kept"),
)
def test_placement(context: Context, case: Case) -> None:
    """What the adapter as a whole sees of x is read back from the output: every entry is 0 or x/(1 − p).

    A right contribution is linear in what was dropped, c = x_d Mᵀ with M = W' − W₀ of full column rank here, so
    x_d = c pinv(Mᵀ); the base path keeps x. The mask is drawn per entry. At full rank PiSSA leaves nothing of the base
    path: that it keeps x is asked at rank 1 again.
    """
    layer, theirs = dropping(context, case), context.reference(case)
    theirs.train()
    theirs.write({n: layer.value(n) for n in layer.names})
    evaluates_steadily(layer, case)
    base = beneath(context, case, layer)
    mine = [read_mask(layer, case, seed, base) for seed in range(ROUNDS)]
    wanted = describe([read_mask(theirs, case, seed, base) for seed in range(ROUNDS)])
    actual = describe(mine)
    if actual != wanted:
        if actual == WHOLE and _has_no_effect(layer, case):
            raise ToldElsewhere(NOTHING_TO_DROP, "forward.random_parameters")
        told = _placed(context, case, layer, base, actual)
        raise Deviation(case, SEEN, wanted, actual, diagnosis=told)
    _base_path(context, context.abilities.fitted(case.but(rank=1)))


def _placed(context: Context, case: Case, layer: Layer, base: Tensor, actual: str) -> Diagnosis | None:
    """What it says that the mask is not the reference's: nothing is dropped, or at a place that has a name."""
    if actual == WHOLE:
        return ignored_dropout(context.variant)
    elsewhere = place_under_own_masks(case, layer, base, ROUNDS)
    if elsewhere is None and drops_its_output(layer, case, evaluated(layer, case), ROUNDS):
        elsewhere = mistake(f"{context.variant.id}.dropout_on_output")
    return described(elsewhere, 1, 1) if elsewhere else None


def _base_path(context: Context, case: Case) -> None:
    """Raise Deviation unless what dropout changes lies in the span of the columns of M, which at rank 1 leaves room."""
    layer = dropping(context, case)
    layer.train(False)
    weight, bias = effective(layer, case)
    layer.train()
    M = weight - beneath(context, case, layer)
    change = masked(layer, case.x, 0) - (case.x.double() @ weight.mT + bias)
    outside = change - change @ torch.linalg.pinv(M.mT) @ M.mT
    kept = float(outside.norm()) <= OUTSIDE_SPAN * float(change.norm())
    what = f"dropout's part of the output at p = {RATE}"
    context.demand(kept, case, what, "x_d (W' − W₀)ᵀ for some x_d", "more than that")


def read_mask(layer: Layer, case: Case, seed: int, base: Tensor) -> Tensor | None:
    """(batch, in) kept-factors x_d / x of one pass, or None where the contribution is no mask of x."""
    layer.train(False)
    weight, bias = effective(layer, case)
    layer.train()
    plain_bias = 0.0 if case.bias_vector is None else case.bias_vector.double()
    y = masked(layer, case.x, seed)
    x = case.x.double()
    if alike(y, x @ weight.mT + bias, NOTHING_DROPPED):
        return torch.ones_like(x)
    kept = (y - x @ base.mT - plain_bias) @ torch.linalg.pinv((weight - base).mT) / x
    binary = (kept.abs() < MASK_ENTRY) | ((kept - 1 / (1 - RATE)).abs() < MASK_ENTRY)
    # Entries of x near zero, and nearly dependent columns of M, amplify rounding: a few may be off.
    return kept if binary.double().mean() > MASK_SHARE else None


def describe(masks: list[Tensor | None]) -> str:
    """What the masks of several passes are, in words."""
    if any(mask is None for mask in masks):
        return "not x with entries zeroed and the rest divided by 1 − p"
    kept = torch.stack([m for m in masks if m is not None])
    if bool((kept - 1).abs().max() < WHOLE_MASK):
        return WHOLE
    zero = kept.abs() < 0.5
    if zero.shape[-1] > 1 and bool((zero == zero[..., :1]).all()):
        return "x with whole samples zeroed"
    if bool((zero == zero[:, :1]).all()):
        return "x with the same features zeroed in every sample"
    return "x with entries zeroed, the rest divided by 1 − p"


@check(
    "dropout",
    "major",
    title="the share of dropped entries or the expectation is not the reference's",
    failure_mode="the configured rate is not the one that acts",
    domain=Domain(dtypes=("float32",), sizes=(3, 5), batches=((64,),), dropout=RATE, tall=True),
    applies=_has_dropout,
    examples=2,
    against=("peft",),
    follows=("dropout.active", "dropout.placement", "dropout.off_in_eval"),
)
def test_expectation(context: Context, case: Case) -> None:
    """Averaged over masks the training output is the evaluation output, within five standard errors."""
    layer = dropping(context, case)
    theirs = context.reference(case)
    theirs.train()
    theirs.write({n: layer.value(n) for n in layer.names})
    evaluates_steadily(layer, case)
    mine, other = _bias_in_sigmas(layer, case), _bias_in_sigmas(theirs, case)
    context.worst.see(mine, STANDARD_ERRORS)
    same = (mine < STANDARD_ERRORS) == (other < STANDARD_ERRORS)
    context.demand(same, case, "mean over masks against evaluation, in standard errors", "below 6",
               f"{mine:.3g}")  # fmt: skip


def _bias_in_sigmas(layer: Layer, case: Case) -> float:
    """|mean over masks and samples of ⟨y_train − y_eval, c⟩| in standard errors, c the evaluation's contribution."""
    layer.train(False)
    weight, bias = effective(layer, case)
    layer.train()
    base = case.variant.weight_beneath(case.weight.double(), layer.values())
    contribution = case.x.double() @ (weight - base).mT
    expected = case.x.double() @ weight.mT + bias
    samples = torch.stack(
        [((masked(layer, case.x, seed) - expected) * contribution).sum(-1) for seed in range(64)]
    ).sum(-1)
    spread = float(samples.std()) / len(samples) ** 0.5
    return abs(float(samples.mean())) / spread if spread > 0 else 0.0


@check(
    "dropout",
    "major",
    title="with dropout the layer refuses a base dtype, or answers in another dtype than the reference",
    failure_mode="a half-precision model could not be trained with dropout",
    domain=Domain(dtypes=("float32", "bfloat16", "float16"), batches=((4,),), dropout=RATE),
    applies=_has_dropout,
    examples=6,
    against=("peft",),
    follows=("dtype.output",),
    diagnose=False,
)
def test_dtypes(context: Context, case: Case) -> None:
    """In training mode with p > 0, for every base dtype, there is an output and its dtype is the reference's."""
    layer, theirs = dropping(context, case), context.reference(case)
    theirs.train()
    with torch.no_grad():
        actual, wanted = layer(case.x).dtype, theirs(case.x).dtype
    context.demand(actual == wanted, case, f"dtype of y with dropout for {case.dtype}", wanted, actual)


@check(
    "dropout",
    "critical",
    title="with dropout on, the gradients are not those of the function that was evaluated",
    failure_mode="the steps taken, or what is passed down to the layers below, would belong to another loss than the "
    "one that is shown",
    domain=DROPPING,
    applies=_has_dropout,
    examples=3,
    against=("paper",),
    follows=(
        "dropout.active",
        "dropout.placement",
        "forward.random_parameters",
        "forward.gradients",
        "forward.input_gradient",
        "shapes.roles",
    ),
)
def test_gradients(context: Context, case: Case) -> None:
    """With the mask fixed by the seed, ∂⟨G, y⟩ of every parameter and of x is that of y with this mask, x_d = m ⊙ x.

    The mask is read from the output: per row, the one of the 2^in masks whose output is the layer's.
    """
    pair, plain = context.pair(case, "far"), context.pair(undropped(context, case), "far")
    without = _gradients(context, plain, torch.ones_like(case.x, dtype=torch.float64))
    if _first_wrong(context, plain, rounding.observe(plain.ours, case, gradients=True), without) is not None:
        why = "without dropout the gradients differ already, which forward.gradients reports"
        raise ToldElsewhere(why, "forward.gradients")
    pair.ours.train()
    seed_torch(case.seed)
    actual = rounding.observe(pair.ours, case, gradients=True)
    with_mask = _gradients(context, pair, _mask(context, pair, actual["output"]))
    wrong = _first_wrong(context, pair, actual, with_mask)
    if wrong is None:
        return
    if wrong.witness.quantity == "output":
        why = "what is dropped cannot be read from the output, which dropout.placement reports"
        raise ToldElsewhere(why, "dropout.placement")
    name = wrong.witness.quantity
    forgotten = rounding.ratio(actual[name], *without[name]) <= THRESHOLDS["formula"]
    raise wrong.with_note("it is the gradient without the mask" if forgotten else "")


Expected = dict[str, tuple[Tensor, float]]  # quantity -> its float64 value, and the noise it may have


def _gradients(context: Context, pair: Pair, mask: Tensor) -> Expected:
    """Output and gradients of the equation when the adapter's branch is given ``mask ⊙ x``."""

    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, p: paper.Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        return context.forward(x, W, b, p, spec, dropped * mask.to(dropped.dtype))

    def at(point: rounding.Point) -> rounding.Quantities:
        return rounding.evaluate(forward, point, pair.trainable, True)

    noise = rounding.noise(at, pair.point, rounding.coarser(pair.case.torch_dtype), pair.case.generator(7))
    return {name: (value, noise[name]) for name, value in at(pair.point).items()}


def _mask(context: Context, pair: Pair, y: Tensor) -> Tensor:
    """(batch, in) of 0 and 1/(1 − p): per row of x, whichever mask gives the output that is nearest to ``y``."""
    at = pair.point
    masks = every_mask(at.x.shape[-1], RATE)
    with torch.no_grad():
        every = torch.stack(
            [context.forward(at.x, at.W, at.b, at.parameters, at.spec, at.x * mask) for mask in masks]
        )
    return masks[(every - y).square().sum(-1).argmin(0)]


def _first_wrong(
    context: Context, pair: Pair, actual: rounding.Quantities, expected: Expected
) -> Deviation | None:
    """The first quantity that is further off than rounding allows, the output before the gradients."""
    for name, (exact, limit) in expected.items():
        try:
            context.judge(pair.case, name, actual.get(name, torch.zeros_like(exact)), exact, limit)
        except Deviation as found:
            return found
    return None

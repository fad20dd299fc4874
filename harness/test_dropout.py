"""Dropout: active in training, off in evaluation, on the adapter branch's input and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare.context import Context, Refused
from harness.compare.layer import Layer
from harness.compare.outcome import Deviation, ModeMissing
from harness.compare.probing import alike, effective, far_layer
from harness.compare.thresholds import (
    EVALUATION_GAP,
    MASK_ENTRY,
    MASK_SHARE,
    NOTHING_DROPPED,
    SAME_DRAWS,
    SAME_MASK,
    STANDARD_ERRORS,
    WHOLE_MASK,
)
from harness.engine.checks import check
from harness.engine.diagnosis import described
from oracles.implementation import Unsupported
from oracles.mistakes import mistake
from oracles.seeding import seed_torch
from oracles.variants import Variant
from reports.model import Diagnosis

RATE = 0.4
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


def trained(layer: Layer, case: Case, seed: int) -> Tensor:
    """One output in training mode, the mask drawn from ``seed``; float64."""
    seed_torch(seed)
    with torch.no_grad():
        return layer(case.x).double()


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
    failure_mode="the regularisation that the configuration asks for is absent, and nothing says so",
    domain=DROPPING,
    applies=_has_dropout,
    examples=3,
    against=("peft",),
    follows=("scale.effective", "forward.random_parameters"),
)
def test_active(context: Context, case: Case) -> None:
    """In training mode with p > 0 two masks give two outputs."""
    layer = dropping(context, case)
    first = trained(layer, case, 1)
    varies = any(not alike(first, trained(layer, case, seed), SAME_MASK) for seed in (2, 3, 4))
    dropped = not alike(first, evaluated(layer, case), NOTHING_DROPPED)
    if not varies and _has_no_effect(layer, case):
        raise Refused  # an adapter that contributes nothing has nothing to drop: a finding of other checks
    if not varies and dropped:
        raise Deviation(case, "masks of several calls", "different", "the same", diagnosis=ONE_MASK)
    if varies != _varies(context, case):
        told = None if varies else ignored_dropout(context.variant)
        quantity = f"outputs under two masks at p = {RATE}"
        raise Deviation(case, quantity, "different", "equal", diagnosis=told)


def ignored_dropout(variant: Variant) -> Diagnosis:
    """The catalogue's words; what shows it is that nothing is drawn, whatever else the layer computes."""
    return described(mistake(f"{variant.id}.dropout_ignored"), 1)


ONE_MASK = Diagnosis(
    "dropout.one_mask",
    "dropout draws the same mask at every call",
    "the same entries are missing throughout training: part of the input is cut off instead of regularised",
    matched=1,
    tried=1,
    source="check",
)


def _has_no_effect(layer: Layer, case: Case) -> bool:
    """Whether the output stays the same when the adapter's parameters do not."""
    before = evaluated(layer, case)
    layer.write(case.but(seed=case.seed + 1).far(dict.fromkeys(layer.names)))
    return torch.equal(before, evaluated(layer, case))


def far_reference(context: Context, case: Case) -> Layer:
    """The oracle with dropout, at parameters far from the start, in training mode."""
    theirs = context.reference(case)
    theirs.train()
    theirs.write(case.far(dict.fromkeys(theirs.names)))
    return theirs


def _varies(context: Context, case: Case) -> bool:
    theirs = far_reference(context, case)
    return not alike(trained(theirs, case, 1), trained(theirs, case, 2), SAME_MASK)


@check(
    "dropout",
    "critical",
    title="dropout stays active in evaluation mode",
    failure_mode="inference is random and biased",
    domain=DROPPING,
    applies=_has_dropout,
    examples=3,
    against=("peft",),
)
def test_off_in_eval(context: Context, case: Case) -> None:
    """In evaluation mode the output is deterministic and equals that of a layer without dropout."""
    layer, plain = dropping(context, case), dropping(context, case.but(dropout=0.0))
    theirs = context.reference(case)
    theirs.write(case.far(dict.fromkeys(theirs.names)))
    mine = _steady(layer, case)
    context.demand(mine == _steady(theirs, case), case, "two evaluations", "equal", "different")
    if mine:
        without = evaluated(plain, case)
        size = float(without.abs().max())
        gap = float((evaluated(layer, case) - without).abs().max())
        context.demand(
            gap <= EVALUATION_GAP * size,
            case,
            "evaluation with p > 0 against p = 0",
            "equal",
            f"{gap:.3g} apart",
        )


def _steady(layer: Layer, case: Case) -> bool:
    first = evaluated(layer, case)
    return all(torch.equal(first, evaluated(layer, case)) for _ in range(2))


def same_draws(context: Context, case: Case) -> None:
    """Against a mistake: from the same seeds, the same outputs. Another place draws other masks."""
    layer, theirs = dropping(context, case), context.reference(case)
    theirs.train()
    theirs.write({n: layer.value(n) for n in layer.names})
    for seed in range(3):
        mine, other = trained(layer, case, seed), trained(theirs, case, seed)
        gap = float((mine - other).abs().max())
        context.demand(
            gap <= SAME_DRAWS * float(other.abs().max()),
            case,
            "output with dropout",
            "equal",
            f"{gap:.3g} apart",
        )


@check(
    "dropout",
    "major",
    title="dropout acts on another tensor than the adapter branch's input, or with another mask",
    failure_mode="training regularises something else: the base path, the output, or whole samples",
    domain=DROPPING,
    applies=_has_dropout,
    examples=4,
    against=("peft",),
    follows=("dropout.active",),
    explained_by=same_draws,
)
def test_placement(context: Context, case: Case) -> None:
    """What the adapter branch was given is read back from its contribution: every entry is 0 or x/(1 − p).

    The contribution is linear in the branch's input, c = x_d Mᵀ with M = W' − W₀ of full column rank here, so
    x_d = c pinv(Mᵀ); the base path keeps x. The mask is drawn per entry.
    """
    layer, theirs = dropping(context, case), context.reference(case)
    theirs.train()
    theirs.write({n: layer.value(n) for n in layer.names})
    mine = [read_mask(layer, case, seed) for seed in range(ROUNDS)]
    wanted = describe([read_mask(theirs, case, seed) for seed in range(ROUNDS)])
    actual = describe(mine)
    if actual != wanted:
        told = ignored_dropout(context.variant) if actual == WHOLE else None
        raise Deviation(case, f"the branch's input at p = {RATE}", wanted, actual, diagnosis=told)


def read_mask(layer: Layer, case: Case, seed: int) -> Tensor | None:
    """(batch, in) kept-factors x_d / x of one pass, or None where the contribution is no mask of x."""
    layer.train(False)
    weight, bias = effective(layer, case)
    layer.train()
    values = layer.values()
    base = case.variant.weight_beneath(case.weight.double(), values)
    plain_bias = 0.0 if case.bias_vector is None else case.bias_vector.double()
    y = trained(layer, case, seed)
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
    explained_by=same_draws,
)
def test_expectation(context: Context, case: Case) -> None:
    """Averaged over masks the training output is the evaluation output, within five standard errors."""
    layer = dropping(context, case)
    theirs = context.reference(case)
    theirs.train()
    theirs.write({n: layer.value(n) for n in layer.names})
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
        [((trained(layer, case, seed) - expected) * contribution).sum(-1) for seed in range(64)]
    ).sum(-1)
    spread = float(samples.std()) / len(samples) ** 0.5
    return abs(float(samples.mean())) / spread if spread > 0 else 0.0


@check(
    "dropout",
    "major",
    title="with dropout the layer refuses a base dtype, or answers in another dtype than the reference",
    failure_mode="a half-precision model cannot be trained with dropout",
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

"""Several adapters on one layer keep their own settings: the rate of dropout, and the form of the scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.cases.life_cases import FIRST, SECOND
from harness.compare import rank_stabilised, rounding
from harness.compare.context import Context
from harness.compare.layer import Layer, adapt, as_layer
from harness.compare.life_faults import named
from harness.compare.offered import need
from harness.compare.outcome import Deviation, NotOffered
from harness.compare.probing import drops_over_evaluation, effective, kept_factor, masked
from harness.compare.thresholds import MASK_ENTRY
from harness.engine.checks import check
from oracles.implementation import AdapterSpec
from oracles.variants import paper

SEVERAL = ("add_adapter", "set_adapters")
RATES = {FIRST: 0.2, SECOND: 0.5}
OTHERS_RATE = named(
    "dropout_of_another",
    "an adapter drops at the rate of another one",
    "what was trained first goes on with another regularisation as soon as a second adapter is added",
    "keep a rate of dropout for each adapter",
)
ON_IN_EVALUATION = named(
    "added_in_training",
    "an adapter that is added to a layer in evaluation mode drops entries there",
    "a model that is served answers differently at every call after an adapter has been added to it",
    "put what is added into the mode of the layer",
)
OTHERS_SCALE = named(
    "root_of_another",
    "an adapter has α/√r or α/r as another one of its layer does, and not as it was asked for",
    "it acts more strongly or less than where it was trained",
    "keep for each adapter whether its scale is rank-stabilised",
)


@check(
    "lifecycle",
    "major",
    title="the dropout of one of two adapters is not its own",
    failure_mode="training with several adapters regularises them otherwise than the configurations say",
    domain=Domain(
        dtypes=("float32",), sizes=(3, 5), batches=((16,),), dropout=RATES[FIRST], biases=(False,), tall=True
    ),
    against=("paper",),
    applies=lambda variant: variant.has_dropout and variant.base is None,
    examples=2,
    follows=("dropout.active", "dropout.placement", "dropout.off_in_eval", "lifecycle.output"),
    diagnose=False,
    may_refuse=True,
)
def test_dropout(context: Context, case: Case) -> None:
    """Each of two adapters drops at its own rate; one that is added in evaluation mode drops nothing there."""
    need(context.subject, case.spec, SEVERAL)
    if not case.spec.dropout:
        raise NotOffered("dropout", "dropout")
    other = case.but(dropout=RATES[SECOND])
    layer = _two(context, case, other.spec)[FIRST]
    for name, rate in RATES.items():
        _switch(context, layer, name)
        factor = _kept_factor(layer, case)
        if abs(factor - 1) > MASK_ENTRY and abs(factor - 1 / (1 - rate)) > MASK_ENTRY:
            others = any(abs(factor - 1 / (1 - p)) < MASK_ENTRY for p in RATES.values())
            raise Deviation(
                case,
                f"factor on the entries that {name}, at p = {rate}, keeps",
                f"{1 / (1 - rate):.3g}",
                f"{factor:.3g}",
                diagnosis=OTHERS_RATE if others else None,
            )
    if drops_over_evaluation(context.subject, case):
        return  # a first adapter is not in the base's mode, either, which init.evaluation_mode is about
    layer = _two(context, case, other.spec, training=False)[FIRST]
    _switch(context, layer, SECOND)
    if not rounding.same_values(masked(layer, case.x, 0), masked(layer, case.x, 1)):
        quantity = "two calls in evaluation mode, of an adapter that was added in it"
        raise Deviation(case, quantity, "equal", "different", diagnosis=ON_IN_EVALUATION)


@check(
    "lifecycle",
    "critical",
    title="the scale of one of two adapters is not its own",
    failure_mode="an adapter acts more strongly or less than where it was trained",
    domain=rank_stabilised.DRAWN,
    against=("paper",),
    applies=lambda variant: rank_stabilised.has_it(variant) and variant.base is None,
    examples=2,
    follows=("scale.rank_stabilised", "scale.effective", "forward.random_parameters", "lifecycle.output"),
    diagnose=False,
    may_refuse=True,
)
def test_scale(context: Context, case: Case) -> None:
    """Of two adapters either may have α/√r and the other one α/r; each alone computes its own equation."""
    need(context.subject, case.spec, SEVERAL)
    rank_stabilised.is_offered(context, case)
    plain = case.but(rslora=False)
    for first, second in ((case, plain), (plain, case)):
        both = _two(context, first, second.spec)
        for name, asked in ((FIRST, first), (SECOND, second)):
            _switch(context, both[FIRST], name)
            _computes(context, asked, both[FIRST], both[name].values(), name)


def _computes(context: Context, case: Case, layer: Layer, values: Mapping[str, Tensor], name: str) -> None:
    """Raise Deviation unless the layer answers as the equation at these values does."""
    x, W = case.x.double(), case.weight.double()
    b = None if case.bias_vector is None else case.bias_vector.double()
    layer.train(False)
    with torch.no_grad():
        weight, bias = paper.effective(context.forward, W, b, dict(values), case.spec)
        exact, actual = x @ weight.mT + bias, layer(case.x).double()
    size = float(x.norm()) * float(weight.norm() + W.norm()) + float(exact.norm())
    what = "α/√r" if case.spec.rslora else "α/r"
    try:
        unit = rounding.roundoff(torch.float32) * size
        context.judge(case, f"output of {name} alone, which has {what}", actual, exact, unit)
    except Deviation as found:
        found.diagnosis = OTHERS_SCALE
        raise


def _two(context: Context, case: Case, second: AdapterSpec, *, training: bool = True) -> dict[str, Layer]:
    """A layer with the case's adapter and a second one, in that mode, both far from the start."""
    first = context.layer(case) if training else adapt(context.subject, case.base().eval(), case.spec)
    found = context.calling("add_adapter", context.subject.add_adapter, first.adapted, SECOND, second)
    both = {FIRST: first, SECOND: as_layer(found, context.subject, "add_adapter")}
    for place, layer in enumerate(both.values()):
        layer.write(case.but(seed=case.seed + place).far(dict.fromkeys(layer.names)))
    return both


def _switch(context: Context, layer: Layer, name: str) -> None:
    context.calling("set_adapters", context.subject.set_adapters, layer.adapted, (name,))


def _kept_factor(layer: Layer, case: Case) -> float:
    """What entries of x that are kept are multiplied by; one where none are dropped, or another tensor's are."""
    layer.train(False)
    weight, _ = effective(layer, case)
    layer.train()
    x, W = case.x.double(), case.weight.double()
    kept = (masked(layer, case.x, 0) - x @ W.mT) @ torch.linalg.pinv((weight - W).mT) / x
    return kept_factor(kept) or 1.0

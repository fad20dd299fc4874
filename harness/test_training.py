"""Training: ten optimiser steps follow the reference's trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, Pair, Worst, double
from harness.compare.layer import Layer, answering
from harness.compare.loose_parameters import but_for_further
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.engine.checks import check
from reports.model import Diagnosis

STEPS = 10
SMALL = Domain(dtypes=("float64", "float32"), sizes=(3, 8), ranks=(1, 4), batches=((6,),))
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
WRONG_BEFORE = (
    "step0.nothing_trains",
    "forward.random_parameters",
    "forward.gradients",
    "step0.gradients",
    "step0.dead_parameters",
    "forward.at_init",
    "shapes.roles",
    "shapes.canonical",
    "forward.pure",
)


def _sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def _adamw(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def _without_decay(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)


# A gate that is stored as l - 1 decays to one, where the references' l decays to zero.
DECAYS_ELSEWHERE = Diagnosis(
    "training.decays_elsewhere",
    "weight decay pulls a tensor to another value than in the references, because it is stored as a function of it",
    "with weight decay the adapter is drawn to another function than the references'; without it nothing differs",
    agrees_with="every reference where there is no weight decay",
    documented_by=(r"weight.?decay", r"\b1 ?\+ ?\w+\b", "parametri[sz]"),
    severity="minor",
    remedy="store the tensor itself, or leave it out of weight decay",
)


def target(case: Case) -> Tensor:
    """What the layer is trained towards (batch, out): its cotangent, random like it."""
    return case.cotangent


def train(layer: Layer, case: Case, names: list[str], make: Optimiser, steps: int = STEPS) -> list[float]:
    """``steps`` steps on ½ mean (y − t)², over the slots ``names``; the losses before each step."""
    layer.train()
    # Slots may be views of one parameter, which takes one step, not one per slot.
    held = list({id(layer.raw(name)): layer.raw(name) for name in names}.values())
    if not held:
        raise ToldElsewhere(
            "nothing of the adapter wants a gradient, which shapes.roles tells", "shapes.roles"
        )
    optimiser = make(held)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (layer(case.x) - target(case)).square().mean() / 2
        losses.append(float(loss.detach()))
        with answering(layer.who, "a training step"):
            if loss.requires_grad:
                loss.backward()
            optimiser.step()
    return losses


@check(
    "training",
    "critical",
    title="SGD does not follow the reference's trajectory",
    failure_mode="training gives another model than the reference from the same start",
    domain=SMALL,
    examples=4,
    follows=WRONG_BEFORE,
)
def test_sgd(context: Context, case: Case) -> None:
    """Ten steps of SGD from the same parameters end where the reference's end."""
    with but_for_further(context, case):
        _follow(context, case, _sgd)


@check(
    "training",
    "critical",
    title="AdamW does not follow the reference's trajectory",
    failure_mode="training gives another model than the reference from the same start",
    domain=SMALL,
    examples=4,
    follows=WRONG_BEFORE,
)
def test_adamw(context: Context, case: Case) -> None:
    """Ten steps of AdamW from the same parameters end where the reference's end."""
    with but_for_further(context, case):
        try:
            _follow(context, case, _adamw)
        except Deviation as found:
            found.diagnosis = DECAYS_ELSEWHERE if _follows(context, case, _without_decay) else None
            raise


def _follows(context: Context, case: Case, make: Optimiser) -> bool:
    try:
        _follow(dataclasses.replace(context, worst=Worst()), case, make)
    except Deviation:
        return False
    return True


def _follow(context: Context, case: Case, make: Optimiser) -> None:
    pair = context.pair(case, "initial")
    start = pair.theirs.values()
    names = [n for n in pair.trainable if pair.ours.raw(n).requires_grad]
    own = [n for n in pair.ours.names if pair.ours.raw(n).requires_grad]
    train(pair.ours, case, own, make)
    train(pair.theirs, double(case), names, make)
    noise = wander(context, pair, start, names, make)
    for name in names:
        exact = pair.theirs.value(name)
        context.judge(
            case, f"{name} after {STEPS} steps", pair.ours.value(name), exact, noise[name], "trajectory"
        )


def wander(
    context: Context, pair: Pair, start: dict[str, Tensor], names: list[str], make: Optimiser
) -> dict[str, float]:
    """How far the reference's own end moves when its start is perturbed by roundoff, as Frobenius norms."""
    unit = rounding.roundoff(rounding.coarser(pair.case.torch_dtype))
    generator = pair.case.generator(7)
    total = dict.fromkeys(names, 0.0)
    for _ in range(2):
        other = context.evaluator(pair.case)
        # An exact zero stays zero when scaled; nudging it would be another start, not a rounded one.
        other.write({
            n: v * (1 + unit * torch.randn(v.shape, generator=generator, dtype=v.dtype)) for n, v in start.items()
        })  # fmt: skip
        train(other, double(pair.case), names, make)
        for name in names:
            gap = torch.linalg.vector_norm(other.value(name) - pair.theirs.value(name))
            total[name] = max(total[name], float(gap))
    return {n: total[n] + unit * float(torch.linalg.vector_norm(pair.theirs.value(n))) for n in names}


@check(
    "training",
    "critical",
    title="training is dead where the reference's is not",
    failure_mode="the adapter learns nothing, or only part of it does",
    domain=SMALL,
    examples=4,
    follows=("training.adamw", "training.sgd", *WRONG_BEFORE),
)
def test_alive(context: Context, case: Case) -> None:
    """Every parameter that moves within ten steps of the reference moves in the subject, and the loss stays finite."""
    pair = context.pair(case, "step0")
    names = [n for n in pair.trainable if pair.ours.raw(n).requires_grad]
    own = [n for n in pair.ours.names if pair.ours.raw(n).requires_grad]
    before = pair.ours.values(), pair.theirs.values()
    losses = train(pair.ours, case, own, _adamw)
    train(pair.theirs, double(case), names, _adamw)
    for name in names:
        mine = bool((pair.ours.value(name) != before[0][name]).any())
        other = bool((pair.theirs.value(name) != before[1][name]).any())
        with but_for_further(context, case):
            context.demand(
                mine or not other, case, f"{name} after {STEPS} steps", "moved", "where it started"
            )
    finite = all(abs(loss) < float("inf") for loss in losses)
    context.demand(finite, case, "losses", "finite", [f"{loss:.3g}" for loss in losses])

"""Step-0 gradient: what the first optimiser step sees, at the reference's start with the subject's random draws."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, Pair, double
from harness.compare.layer import Layer, answering
from harness.compare.loose_parameters import but_for_further, learns_beside
from harness.compare.outcome import Deviation
from harness.compare.thresholds import DEAD_GRADIENT
from harness.engine.checks import check

INNER = Domain(sizes=(2, 9), ranks=(1, 6))


@check(
    "step0",
    "critical",
    title="the first gradient is not the reference's",
    failure_mode="training starts in another direction or with another step size",
    follows=("step0.nothing_trains", "forward.gradients", "forward.random_parameters"),
)
def test_gradients(context: Context, case: Case) -> None:
    """∂⟨G, y⟩ of every parameter equals the reference's, both at the subject's own start."""
    pair = context.pair(case, "initial")
    with but_for_further(context, case):
        context.compare(pair, gradients=True, only=[f"gradient of {n}" for n in pair.trainable])


@check(
    "step0",
    "critical",
    title="parameters are dead on step 0 that the reference trains, or the other way round",
    failure_mode="part of the adapter does not learn until another part has moved",
    domain=INNER,
    follows=(
        "step0.nothing_trains",
        "forward.gradients",
        "forward.random_parameters",
        "init.deterministic",
        "scale.effective",
    ),
)
def test_dead_parameters(context: Context, case: Case) -> None:
    """The parameters whose first gradient is exactly zero are the reference's: A where B = 0, and no others.

    Every tensor that the reference sets starts at its value; random draws are the subject's.
    """
    pair = context.pair(case, "step0")
    noise = context.noise(pair, gradients=True)
    mine, theirs = (_dead(layer, c, pair, noise) for layer, c in _sides(pair))
    quantity = "parameters without gradient on step 0"
    with but_for_further(context, case):
        context.demand(mine == theirs, case, quantity, theirs or "none", mine or "none")


def _sides(pair: Pair) -> list[tuple[object, Case]]:
    return [(pair.ours, pair.case), (pair.theirs, double(pair.case))]


def _dead(layer: object, case: Case, pair: Pair, noise: dict[str, float]) -> list[str]:
    found = rounding.observe(layer, case, gradients=True)  # type: ignore[arg-type]
    names = [n for n in pair.trainable if f"gradient of {n}" in noise]
    return [
        n for n in names if _size(found.get(f"gradient of {n}")) <= DEAD_GRADIENT * noise[f"gradient of {n}"]
    ]


def _size(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))


@check(
    "step0",
    "critical",
    title="the first gradient that is passed down to the input is not the reference's",
    failure_mode="layers below the adapted one would be trained wrongly",
    follows=("forward.input_gradient", "forward.random_parameters"),
)
def test_input_gradient(context: Context, case: Case) -> None:
    """∂⟨G, y⟩/∂x at the start is G W' with the effective weight."""
    context.compare(context.pair(case, "initial"), gradients=True, only=["gradient of x"])


@check(
    "step0",
    "major",
    title="the frozen base weight or bias receives a gradient",
    failure_mode="memory is spent on it, and an optimiser over all parameters would move the base model",
    against=("paper",),
    follows=("shapes.frozen_base",),
    diagnose=False,
)
def test_base_frozen(context: Context, case: Case) -> None:
    """After a backward pass nothing outside the adapter holds a gradient."""
    layer = context.layer(case)
    layer.clear_gradients()
    x = case.x.clone().requires_grad_(True)
    y = rounding.of_the_layers_shape(layer, case, layer(x), x)
    if y.requires_grad:
        with answering(layer.who, "the backward pass"):
            y.backward(case.cotangent.to(y.dtype))
    own = {id(layer.raw(name)) for name in layer.names}
    held = [n for n, p in layer.module.named_parameters() if p.grad is not None and id(p) not in own]
    context.demand(not held, case, "gradients outside the adapter", "none", ", ".join(held))


@check(
    "step0",
    "critical",
    title="at the start no parameter of the adapter gets a gradient: nothing trains",
    failure_mode="the adapter stays as it was initialised",
    domain=INNER,
    examples=4,
    against=("paper",),
)
def test_nothing_trains(context: Context, case: Case) -> None:
    """At the subject's own start some parameter has a gradient, as some has in the reference.

    One of its own that the method has not counts as well: through it the rest comes to learn.
    """
    layer, theirs = context.layer(case), context.reference(case)
    if _with_gradient(layer, case) or learns_beside(layer, case) or not _with_gradient(theirs, case):
        return
    zero = [n for n in layer.names if layer.view(n).dim() == 2 and not layer.value(n).any()]
    layer.write(case.far(dict.fromkeys(layer.names)))
    notes = [f"all zero at the start: {', '.join(zero)}"] if len(zero) > 1 else []
    notes += [] if _with_gradient(layer, case) else ["none far from it either"]
    raise Deviation(case, "parameters with a gradient at the start", "some", "none", note="; ".join(notes))


def _with_gradient(layer: Layer, case: Case) -> list[str]:
    """The slots whose gradient is not exactly zero."""
    layer.train()
    found = rounding.observe(layer, case, gradients=True)
    return [n for n in layer.names if (g := found.get(f"gradient of {n}")) is not None and bool(g.any())]

"""Merge and detach: the folded layer is the effective one, and taking the adapter off gives the base back."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, double
from harness.compare.probing import effective, far_layer, plain_layer
from harness.engine.checks import check


@check(
    "merge",
    "major",
    title="the merged layer is not the adapted one",
    failure_mode="deployment runs another model than the one that was trained and evaluated",
    against=("paper",),
    diagnose=False,
)
def test_weight(context: Context, case: Case) -> None:
    """The merged layer's weight and bias are the effective ones of the adapted layer, and it computes the same."""
    _merged(context, case)


@check(
    "merge",
    "major",
    title="in one of its modes the merged layer is not the adapted one",
    failure_mode="deployment runs another model than the one that was trained and evaluated",
    against=("paper",),
    modes=True,
    follows=("merge.weight", "shapes.modes"),
    diagnose=False,
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode the merged layer is the adapted one."""
    _merged(context, case)


def _merged(context: Context, case: Case) -> None:
    layer = far_layer(context, case)
    weight, bias = effective(layer, case)
    merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    size = float(torch.linalg.matrix_norm(weight)) + float(torch.linalg.matrix_norm(case.weight.double()))
    shift = float(torch.linalg.vector_norm(bias))
    amplified = functools.cache(lambda: unit * context.amplification(case))

    def judge(what: str, actual: Tensor, exact: Tensor, operands: float) -> None:
        own = unit * float(torch.linalg.vector_norm(exact))
        context.judge(case, what, actual, exact, own, noise=lambda: amplified() * operands)

    judge("merged weight", merged.weight.detach().double(), weight, 2 * (size + shift))
    own = torch.zeros_like(bias) if merged.bias is None else merged.bias.detach().double()
    judge("merged bias", own, bias, shift)
    with torch.no_grad():
        y = merged(case.x).double()
    expected = case.x.double() @ weight.mT + bias
    judge(
        "output of the merged layer",
        y,
        expected,
        float(torch.linalg.vector_norm(case.x.double())) * size + shift,
    )


@check(
    "merge",
    "major",
    title="in half precision the merged layer is not the adapted one, or has another dtype",
    failure_mode="deployment runs another model than the one that was trained and evaluated",
    domain=Domain(dtypes=("bfloat16", "float16"), sizes=(3, 9)),
    against=("paper",),
    examples=8,
    follows=("merge.weight", "dtype.output", "forward.random_parameters"),
    diagnose=False,
)
def test_half(context: Context, case: Case) -> None:
    """In bf16 and fp16 the merged weight is the effective one up to rounding of its terms, in the base's dtype."""
    pair = context.pair(case, "far")
    W, _ = effective(pair.theirs, double(case), torch.float64)
    merged = plain_layer(context.calling("merge", context.subject.merge, pair.ours.adapted), "merge")
    context.demand(merged.weight.dtype == case.torch_dtype, case, "dtype of the merged weight", case.dtype,
               str(merged.weight.dtype).removeprefix("torch."))  # fmt: skip
    floor = rounding.roundoff(case.torch_dtype) * float(torch.linalg.matrix_norm(W))
    noise = functools.cache(lambda: sum(context.effective_noise(pair).values()))
    context.judge(case, "merged weight", merged.weight.detach().double(), W, floor, "precision", noise=noise)


@check(
    "merge",
    "major",
    title="detaching does not give back the base layer",
    failure_mode="the base model is damaged by having been adapted once",
    against=("paper",),
    diagnose=False,
)
def test_detach(context: Context, case: Case) -> None:
    """After detach, weight and bias are bitwise the base's as before adapt, and the layer computes as the base does."""
    base = case.base()
    with torch.no_grad():
        before = base(case.x)
    layer = context.layer(case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    found = plain_layer(context.calling("detach", context.subject.detach, layer.adapted), "detach")
    same = torch.equal(found.weight.detach(), case.weight)
    context.demand(
        same, case, "the weight after detach", "bitwise the base's", _apart(found.weight, case.weight)
    )
    if case.bias_vector is not None:
        same = found.bias is not None and torch.equal(found.bias.detach(), case.bias_vector)
        context.demand(same, case, "the bias after detach", "bitwise the base's", "changed")
    with torch.no_grad():
        context.demand(
            torch.equal(found(case.x), before),
            case,
            "the output after detach",
            "bitwise the base's",
            "changed",
        )


def _apart(actual: Tensor, exact: Tensor) -> str:
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}"
    return f"up to {float((actual.detach() - exact).abs().max()):.3g} away"

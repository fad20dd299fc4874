"""Whether a fresh adapter on a layer of another kind answers as the layer does, and in which way it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.cases.kind_cases import KindCase
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.kind_faults import DEFAULTS, LEFT_OUT, OTHER_BIAS, OTHER_START, PLAIN_IN_PLACE, agrees
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.compare.rounding import coarser
from oracles.implementation import Unsupported
from oracles.plain_linear import plain
from oracles.seeding import seed_torch
from reports.model import Diagnosis


def starts_at_the_base(context: Context, case: KindCase, layer: Callable[[Tensor], Tensor]) -> None:
    """A fresh adapter answers as the base does, where the method promises it."""
    if not case.variant.starts_at_identity(case.spec):
        return
    base = case.base()
    with torch.no_grad():
        wanted, actual = base(case.x), layer(case.x)
    if actual.shape != wanted.shape:
        shapes = str(tuple(wanted.shape)), str(tuple(actual.shape))
        left_out = _option_left_out(case, actual)
        raise Deviation(case, "shape of the output", *shapes, diagnosis=left_out, alone=left_out is not None)
    rows = case.rows(case.input)
    size = float(rows.norm() * case.weight.double().norm() + wanted.double().norm()) * case.embed_scale
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    try:
        context.judge(case, "output at the start", actual.double(), wanted.double(), unit * size)
    except Deviation as found:
        linear_starts_there(context, case)
        found.diagnosis = PLAIN_IN_PLACE if is_plain(case, actual) else _other_start(case, actual, wanted)
        found.alone = True  # where a linear layer starts as it should
        raise


def linear_starts_there(context: Context, case: KindCase) -> None:
    """Raise ToldElsewhere where the subject's linear layer over the case's matrix does not start at that layer."""
    rows, weight, bias = case.rows(case.input).to(case.torch_dtype), case.weight.double(), _linear_bias(case)
    try:
        with torch.no_grad():
            actual = fresh_linear(context, case)(rows).double()
    except (SubjectRaised, Unsupported, BadAnswer):
        return
    wanted = rows.double() @ weight.mT + (0 if bias is None else bias.double())
    size = float(rows.double().norm() * weight.norm() + wanted.norm())
    unit = rounding.roundoff(coarser(case.torch_dtype)) * size
    if not agrees(actual, wanted, unit):
        raise ToldElsewhere("a fresh adapter on a linear layer answers otherwise, too", "init.identity")


def fresh_linear(context: Context, case: KindCase) -> Layer:
    """The subject's fresh linear layer over the case's matrix and bias."""
    seed_torch(case.seed)
    return adapt(context.subject, plain(case.weight, _linear_bias(case), case.torch_dtype), case.spec)


def _linear_bias(case: KindCase) -> Tensor | None:
    return None if case.kind == "embedding" else case.bias_vector


def _other_start(case: KindCase, actual: Tensor, wanted: Tensor) -> Diagnosis:
    """An option without which the layer answers so; or what is added to its output: the same to every row, or not."""
    if left_out := _option_left_out(case, actual):
        return left_out
    gap = case.outputs(actual - wanted).double()
    unit = rounding.roundoff(coarser(case.torch_dtype)) * float(wanted.double().norm())
    shifted = gap.shape[0] > 1 and agrees(gap, gap.mean(0, keepdim=True).expand_as(gap), unit)
    return OTHER_BIAS if shifted else OTHER_START


def _option_left_out(case: KindCase, actual: Tensor) -> Diagnosis | None:
    """The option of a convolution without which the layer itself answers what the adapted one does."""
    for option, default in DEFAULTS.items():
        if case.kind != "conv2d" or getattr(case, option) == default:
            continue
        with torch.no_grad():
            without = replace(case, **{option: default}).base()(case.x)
        unit = rounding.roundoff(coarser(case.torch_dtype)) * float(without.double().norm())
        if without.shape == actual.shape and agrees(actual.double(), without.double(), unit):
            return LEFT_OUT[option]
    return None


def is_plain(case: KindCase, actual: Tensor) -> bool:
    """Whether a fresh adapter answers as a plain embedding does, where the base scales its output."""
    if case.embed_scale == 1.0:
        return False
    rows = case.rows(case.input) @ case.weight.double().mT
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(rows.norm())
    return agrees(case.outputs(actual).double(), rows, unit)

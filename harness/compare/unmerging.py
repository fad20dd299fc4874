"""Whether unmerging alone is at fault: of a plain layer that was merged in place and is unmerged at once."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.layer import BadAnswer, Layer, SubjectRaised
from harness.compare.offered import offers
from harness.compare.outcome import NotApplicable
from harness.compare.thresholds import ROUNDOFFS, THRESHOLDS
from oracles.implementation import AdapterSpec, Implementation, Unsupported

FOLDING = ("merge_in_place", "unmerge")


def offers_folding(subject: Implementation, spec: AdapterSpec) -> bool:
    """Whether the subject merges in place and unmerges."""
    return all(offers(subject, spec, method) for method in FOLDING)


def leaves_a_rest(context: Context, case: Case) -> bool:
    """Whether a linear layer computes in place what it did before, and after unmerging something else."""
    subject = context.subject
    if not offers_folding(subject, case.spec):
        return False
    try:
        layer = context.layer(case)
        layer.write(case.far(dict.fromkeys(layer.names)))
        before = _answer(layer, case)
        context.calling("merge_in_place", subject.merge_in_place, layer.adapted)
        merged = _answer(layer, case)
        context.calling("unmerge", subject.unmerge, layer.adapted)
        return _alike(merged, before, case) and not _alike(_answer(layer, case), before, case)
    except (SubjectRaised, BadAnswer, NotApplicable, Unsupported):
        return False


def _answer(layer: Layer, case: Case) -> Tensor:
    with torch.no_grad():
        return layer(case.x).double()


def _alike(actual: Tensor, expected: Tensor, case: Case) -> bool:
    """Apart by no more than the rounding of a product with the base weight and of one with the folded one."""
    unit = ROUNDOFFS["folded layer"] * rounding.roundoff(rounding.coarser(case.torch_dtype))
    product = float(
        torch.linalg.vector_norm(case.x.double()) * torch.linalg.matrix_norm(case.weight.double())
    )
    size = product + float(torch.linalg.vector_norm(expected))
    return rounding.ratio(actual, expected, unit * size) <= THRESHOLDS["formula"]

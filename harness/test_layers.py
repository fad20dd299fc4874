"""Kinds of layers: GPT-2's Conv1D, embeddings, convolutions, quantised weights, each as the matrix product that it is.

Asked only of subjects whose ``layers`` names the kind. What a library refuses when it adapts is not offered; what it
takes has to start, compute, learn and fold as the equation says of `harness/cases/kind_cases.py`'s matrices.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from harness.cases.kind_cases import KINDS, KindCase, of_kind
from harness.cases.layer_cases import Domain
from harness.compare import rounding
from harness.compare.context import Context, Refused
from harness.compare.kinds import (
    Kinds,
    adapted,
    equation_at,
    explain,
    explain_gradient,
    is_misfit,
    quantising_error,
    starts_at_the_base,
    taken_by,
)
from harness.compare.layer import SubjectRaised
from harness.compare.offered import need, offers
from harness.compare.outcome import Deviation, NotOffered
from harness.engine.checks import check
from oracles.implementation import Unsupported
from reports.model import Diagnosis

AFFECTED = ("forward.random_parameters", "forward.gradients", "forward.modes")


def _of(kind: str) -> dict[str, Any]:
    return {
        "failure_mode": "layers of this kind run and train as another model than the references' would",
        "domain": Domain(strategy=of_kind(kind)),
        "against": ("paper",),
        "follows": AFFECTED,
        "diagnose": False,
    }


@check("layers", "critical", title="on a Conv1D the adapter is not the equation's", **_of("conv1d"))
def test_conv1d(context: Context, case: KindCase) -> None:
    """On transformers' Conv1D, whose weight is stored (in, out), start, output and gradients are the equation's."""
    _starts_and_computes(context, case)


@check("layers", "critical", title="on an embedding the adapter is not the equation's", **_of("embedding"))
def test_embedding(context: Context, case: KindCase) -> None:
    """On an embedding, with padding, scaled or tied to a head, it is that of a linear layer on one-hot vectors."""
    _starts_and_computes(context, case)


@check("layers", "critical", title="on a convolution the adapter is not the equation's", **_of("conv2d"))
def test_conv2d(context: Context, case: KindCase) -> None:
    """On a convolution of any stride, padding, dilation and groups, it is that of a linear layer on its patches."""
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


def _starts_and_computes(context: Context, case: KindCase) -> None:
    layer = adapted(context, case)
    starts_at_the_base(context, case, layer)
    if case.tied:
        _head_untouched(context, case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    _computes(context, case, layer)


def _head_untouched(context: Context, case: KindCase) -> None:
    """A head that shares the embedding's weight computes as it did, adapted and folded."""
    base, head = case.base(), nn.Linear(case.out_features, case.in_features, bias=False)
    head.weight = base.weight
    x = torch.randn(2, case.out_features, generator=case.generator(5)).to(case.torch_dtype)
    with torch.no_grad():
        before = head(x)
        layer = adapted(context, case, base)
        layer.write(case.far(dict.fromkeys(layer.names)))
        layer(case.x)
        same = torch.equal(head(x), before)
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
            if name == "output":
                found.diagnosis = explain(context, case, layer, actual[name])
            elif name == "gradient of x":
                found.diagnosis = explain_gradient(context, case, layer, actual[name])
            raise


@check(
    "layers",
    "critical",
    title="on another kind of layer the merged layer is not the adapted one",
    failure_mode="deployment runs another model than the one that was trained and evaluated",
    domain=Domain(strategy=of_kind(*KINDS)),
    against=("paper",),
    follows=("layers.conv1d", "layers.embedding", "layers.conv2d", "layers.quantised", "merge.weight"),
    diagnose=False,
)
def test_merge(context: Context, case: KindCase) -> None:
    """Where merging is offered, the folded layer computes what the adapted one does; no further off where quantised.

    Folded in place and unmerged, where that is offered, the layer computes that, too.
    """
    taken = taken_by(context)
    if not taken:
        raise NotOffered(f"{case.spec.variant} on another kind of layer than linear", "layers")
    need(context.subject, case.spec, ("merge",))
    if case.kind not in taken:
        raise Refused
    layer = adapted(context, case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    try:
        folded = context.calling("merge", context.subject.merge, layer.adapted)
    except (SubjectRaised, Unsupported) as why:
        if case.is_plain and is_misfit(why):
            raise
        raise Refused from None
    with torch.no_grad():
        y = case.outputs(folded(case.x)).double()
    exact, noise = equation_at(context, case, layer)
    floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact["output"].norm())
    if case.kind == "quantised":
        floor += quantising_error(context, case, layer, exact["output"])
    try:
        context.judge(
            case, "output of the merged layer", y, exact["output"], floor, noise=lambda: noise("output")
        )
    except Deviation as found:
        found.diagnosis = explain(context, case, layer, y)
        raise
    _unfolds(context, case)


UNMERGED_OTHERWISE = Diagnosis(
    "layers.unmerged_otherwise",
    "on another kind of layer unmerging does not take out what merging folded in",
    "after an evaluation that merges, the model is another one",
    matched=1,
    tried=1,
    source="check",
)


def _unfolds(context: Context, case: KindCase) -> None:
    """Where it is offered: merged in place and taken out again, the layer computes what it did."""
    subject = context.subject
    if not all(offers(subject, case.spec, method) for method in ("merge_in_place", "unmerge")):
        return
    layer = adapted(context, case)
    layer.write(case.far(dict.fromkeys(layer.names)))
    exact, noise = equation_at(context, case, layer)
    with torch.no_grad():
        before = case.outputs(layer(case.x)).double()
    try:
        context.calling("merge_in_place", subject.merge_in_place, layer.adapted)
    except (SubjectRaised, Unsupported):
        return  # what is refused has changed nothing that unmerging would take out
    context.calling("unmerge", subject.unmerge, layer.adapted)
    with torch.no_grad():
        y = case.outputs(layer(case.x)).double()
    floor = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(exact["output"].norm())
    if case.kind == "quantised":
        floor += 2 * quantising_error(context, case, layer, exact["output"])
    try:
        context.judge(case, "output after unmerging", y, before, 2 * floor, noise=lambda: 2 * noise("output"))
    except Deviation as found:
        found.diagnosis = UNMERGED_OTHERWISE
        raise

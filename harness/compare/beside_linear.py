"""What the subject's own linear layer computes of the matrices that a layer of another kind stands for.

A fault of the method shows on every kind of layer. Where a layer of another kind computes just what the subject's
linear one does, its deviation is that fault's; where it computes something else, it has one of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.kind_cases import KindCase
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.kind_start import fresh_linear
from harness.compare.kinds import Kinds, of_layer
from harness.compare.layer import BadAnswer, Layer, SubjectRaised
from harness.compare.outcome import NoSlot
from harness.compare.rounding import Quantities
from harness.compare.thresholds import ROUNDOFFS, THRESHOLDS
from oracles.implementation import Unsupported

NO_ANSWER = (SubjectRaised, BadAnswer, NoSlot, Unsupported, RuntimeError, KeyError)


def is_the_linears(context: Context, case: KindCase, layer: Kinds, name: str, actual: Tensor) -> bool:
    """Whether a quantity (output as rows, a gradient) is that of the subject's own linear layer, too."""
    try:
        found = _observed(_linear(context, case, layer), case, layer)
    except NO_ANSWER:
        return True  # it cannot be told apart
    return name not in found or _alike(case, actual, found[name])


def merges_as_the_linear(context: Context, case: KindCase, layer: Kinds, actual: Tensor) -> bool:
    """Whether the rows that a merged layer gives are those of the adapted one, or of the merged linear one."""
    try:
        adapted = layer.observe(case, wants_gradient=False)["output"]
        folded = context.calling("merge", context.subject.merge, _linear(context, case, layer).adapted)
        with torch.no_grad():
            merged = folded(case.rows(case.input).to(case.torch_dtype)).double() * case.embed_scale
    except NO_ANSWER:
        return True
    return any(_alike(case, actual, other) for other in (adapted, merged))


def _linear(context: Context, case: KindCase, layer: Kinds) -> Layer:
    """The subject's linear layer over the case's matrix and bias, with the values of ``layer``."""
    found = fresh_linear(context, case)
    values = layer.parameters()
    found.write({name: values[name] for name in layer.names if name in found.names})
    return found


def _observed(linear: Layer, case: KindCase, layer: Kinds) -> Quantities:
    """Output, and gradients by x and by the tensors, as :meth:`Kinds.observe` has them."""
    x = case.rows(case.input).to(case.torch_dtype).requires_grad_()
    linear.clear_gradients()
    y = linear(x)
    (y * case.cotangent_of(y.shape).to(y.dtype) * case.embed_scale).sum().backward()
    gradient = torch.zeros_like(x) if x.grad is None else x.grad
    found = {"output": y.detach().double(), "gradient of x": gradient.double()}
    for name in layer.names:
        if name in linear.names and linear.raw(name).requires_grad:
            found[f"gradient of {name}"] = linear.gradient(name)
    return of_layer(case, found, [f"gradient of {n}" for n in layer.names if layer.is_in_blocks(n)])


def _alike(case: KindCase, actual: Tensor, other: Tensor) -> bool:
    unit = ROUNDOFFS["folded layer"] * rounding.roundoff(rounding.coarser(case.torch_dtype))
    return rounding.ratio(actual, other, unit * float(other.norm())) <= THRESHOLDS["formula"]

"""Whether an adapted convolution, whatever shapes its factors have, is still one over the base's own patches.

Factors in a layout of the library's own cannot be put into the equation. But whatever they mean, the layer has to be
one weight times the patches that the base's stride, padding, dilation and groups make: what no weight explains, an
option of the base is missing in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.cases.kind_cases import KindCase
from harness.compare.kind_faults import OTHER_PATCHES, PADDED_WITH_ZEROS, STRIDE_IGNORED, agrees
from harness.compare.layer import Layer, answering
from harness.compare.outcome import Deviation
from harness.compare.rounding import coarser, roundoff
from reports.model import Diagnosis

MORE_ROWS = 3  # than unknowns, so that a fit that is no coincidence leaves nothing


def computes_from_its_patches(case: KindCase, layer: Layer) -> None:
    """Raise the Deviation of a convolution whose output no weight over its patches computes, its adapter moved."""
    if case.kind != "conv2d" or case.spec.dropout or not _moved(case, layer):
        return
    many = _with_rows_enough(case)
    with torch.no_grad():
        actual, base = (many.outputs(of(many.x)).double() for of in (layer, many.base()))
    fits = _judge(many, actual)
    if not fits(many.rows(many.input)):
        raise Deviation(
            case,
            "output as one weight over the base's patches",
            "some weight's",
            "no weight's",
            diagnosis=_which(many, _judge(many, actual - base)),
        )


def _moved(case: KindCase, layer: Layer) -> bool:
    """Move all that trains away from the start; False where nothing does."""
    trained = [p for p in layer.module.parameters() if p.requires_grad]
    generator = case.generator(11)
    with torch.no_grad(), answering(layer.who, "a change of its parameters"):
        for p in trained:
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return bool(trained)


def _with_rows_enough(case: KindCase) -> KindCase:
    """The case with so many images that its patches are more than a weight has numbers."""
    places = case.rows(case.input).shape[0] // math.prod(case.batch)
    return replace(case, batch=(MORE_ROWS * (case.in_features + 1) // places + 1,))


def _judge(case: KindCase, actual: Tensor) -> Callable[[Tensor], bool]:
    """Whether some weight and bias computes ``actual`` (n, out) from rows (n, in), each group from its own inputs."""
    unit = roundoff(coarser(case.torch_dtype)) * float(actual.norm())
    mask = case.mask(case.out_features, case.in_features).bool()

    def fits(rows: Tensor) -> bool:
        if rows.shape[0] != actual.shape[0]:
            return False
        ones = torch.ones(rows.shape[0], 1, dtype=torch.float64)
        best = torch.empty_like(actual)
        for output, seen in enumerate(mask):
            known = torch.cat([rows[:, seen], ones], 1)
            wanted = actual[:, output : output + 1]
            best[:, output : output + 1] = known @ torch.linalg.lstsq(known, wanted, driver="gelsd").solution
        return agrees(actual, best, unit)

    return fits


def _which(case: KindCase, fits: Callable[[Tensor], bool]) -> Diagnosis:
    """The option without which the adapter's own part is a convolution; else the general words."""
    if case.padding_mode != "zeros" and fits(replace(case, padding_mode="zeros").rows(case.input)):
        return PADDED_WITH_ZEROS
    if (
        case.padding_mode == "zeros"
        and max(case.two(case.stride)) > 1
        and fits(case.rows_from_the_corner(case.input))
    ):
        return STRIDE_IGNORED
    return OTHER_PATCHES

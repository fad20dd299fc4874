"""The faults that an adapted layer of another kind is known to have, by name, and which of them an output shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.cases.kind_cases import KindCase
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.rounding import coarser
from harness.compare.thresholds import THRESHOLDS
from oracles.mistakes import mistakes_of
from oracles.variants import paper
from refs.vocabulary import Severity
from reports.model import Diagnosis


class Adapter(Protocol):
    """What is asked of a layer here (:class:`harness.compare.kinds.Kinds`)."""

    def parameters(self) -> dict[str, Tensor]:
        """Every canonical tensor."""


def agrees(actual: Tensor, output: Tensor, unit: float) -> bool:
    """Whether two tensors differ by rounding alone; ``unit``: what one rounding may change their norm by."""
    return rounding.ratio(actual, output, unit) <= THRESHOLDS["formula"]


CATALOGUE: list[Diagnosis] = []  # every fault on a kind of layer that has a name


def _says(name: str, summary: str, failure_mode: str, severity: Severity | None = None) -> Diagnosis:
    entry = Diagnosis(f"layers.{name}", summary, failure_mode, severity=severity)
    CATALOGUE.append(entry)
    return entry


PLAIN_IN_PLACE = _says(
    "plain_in_place",
    "a plain embedding takes the place of one that scales its output: the scale is lost",
    "the rows of a model whose embedding is adapted come out unscaled, before anything is trained",
)
OTHER_BIAS = _says(
    "other_bias",
    "a fresh adapter adds a constant to every row of the output: a bias that the layer has not, or has otherwise",
    "every model with such a layer answers otherwise as soon as it is adapted",
)
OTHER_START = _says(
    "other_start",
    "a fresh adapter on this kind of layer answers otherwise than the layer itself",
    "every model with such a layer answers otherwise as soon as it is adapted, whatever the adapter then learns",
)
# A convolution's options as torch has them by default.
DEFAULTS: dict[str, Any] = {"padding_mode": "zeros", "dilation": 1, "stride": 1, "padding": 0}
LEFT_OUT = {
    option: _says(
        f"{option}_left_out",
        f"the layer that takes a convolution's place leaves its {option.replace('_', ' ')} out, of the base, too",
        "every model with such a layer answers otherwise as soon as it is adapted, whatever the adapter then learns",
    )
    for option in DEFAULTS
}
# What a merged convolution takes over from the layer.
MERGED_WITHOUT = {
    option: _says(
        f"merged_without_{option}",
        f"the convolution that the layer is merged into has another {option.replace('_', ' ')} than the layer",
        "what is deployed computes another function than what was trained, or raises",
    )
    for option in ("groups", *DEFAULTS)
}
UPDATE_LOST = _says(
    "update_lost", "the base answers: the update is lost", "the adapter has no effect on layers of this kind"
)
BIAS_LOST = _says(
    "bias_lost", "the bias is left out", "the output is shifted; nothing shows on layers without a bias"
)
PADDING_LEARNS = _says(
    "padding_learns",
    "the embedding's padding token has a column of A that gets a gradient: it is trained, and no row of a plain "
    "embedding's is",
    "what the base keeps out of training, by its padding_idx, moves with the adapter",
    severity="minor",
)
SCALE_LOST = _says(
    "embed_scale",
    "the embedding's scale multiplies the base's rows and not the adapter's",
    "the update is too small by the scale, which is the square root of the width in several models",
)
TRANSPOSED = _says(
    "transposed",
    "the update is that of the transposed layout",
    "on square layers another function is computed, and nothing raises",
)


GROUPS_IGNORED = _says(
    "groups_ignored",
    "every group of the convolution gets the first group's coordinates",
    "the update is right in the first group alone; nothing raises, and nothing shows without groups",
)
STRIDE_IGNORED = _says(
    "stride_ignored",
    "the adapter's own convolution has a stride of one",
    "each output gets the update of another place in the image",
)
PADDED_WITH_ZEROS = _says(
    "padded_with_zeros",
    "the adapter's own convolution pads with zeros where the layer pads otherwise",
    "at the images' edges the update is another than what merging it gives",
)
OTHER_PATCHES = _says(
    "other_patches",
    "the adapter of a convolution looks at other patches of the image than the layer: no weight computes its output",
    "the update is that of another convolution than the layer's, and cannot be merged; nothing raises",
)
MIRRORED = _says(
    "mirrored",
    "the positions of the update's kernel are mirrored",
    "the update is that of the kernel turned round; nothing shows on kernels of one position",
)


def explain(context: Context, case: KindCase, layer: Adapter, actual: Tensor) -> Diagnosis | None:
    """The known fault whose output the rows are, if one is."""
    scale = float(actual.norm()) + float(case.rows(case.input).norm() * case.weight.double().norm())
    unit = rounding.roundoff(coarser(case.torch_dtype)) * scale
    for diagnosis, output in _faulty(context, case, layer):
        if agrees(actual, output, unit):
            return diagnosis
    return None


def explain_gradient(context: Context, case: KindCase, layer: Adapter, actual: Tensor) -> Diagnosis | None:
    """The catalogue's cut base path, where the gradient of x is the adapter's part alone."""
    cut = next((m for m in mistakes_of(case.variant.id) if m.id.endswith(".base_path_cut")), None)
    if cut is None:
        return None
    with torch.no_grad():
        merged, _ = paper.effective(
            context.forward, case.weight.double(), None, layer.parameters(), case.spec
        )
        rows = case.rows(case.input)
        G = case.cotangent_of(torch.Size((rows.shape[0], case.out_features))) * case.embed_scale
        own = case.back(G @ (merged - case.weight.double()))
    unit = rounding.roundoff(coarser(case.torch_dtype)) * float(G.norm() * merged.norm())
    if not agrees(actual, own, unit):
        return None
    return Diagnosis(cut.id, cut.summary, cut.failure_mode, source="catalogue", remedy=cut.remedy)


def _faulty(context: Context, case: KindCase, layer: Adapter) -> Iterator[tuple[Diagnosis, Tensor]]:
    W, b, e = case.weight.double(), case.bias_vector, case.embed_scale
    shift = torch.zeros(case.out_features, dtype=torch.float64) if b is None else b.double()
    rows = case.rows(case.input)
    with torch.no_grad():
        merged, bias = paper.effective(
            context.forward, W, None if b is None else shift, layer.parameters(), case.spec
        )
    change = merged - W
    yield UPDATE_LOST, rows @ W.mT * e + shift
    if b is not None:
        yield BIAS_LOST, rows @ merged.mT
    if e != 1.0:
        yield SCALE_LOST, rows @ W.mT * e + rows @ change.mT
    if case.in_features == case.out_features:
        yield TRANSPOSED, rows @ (W + change.mT).mT * e + bias
    if case.kind == "conv2d":
        yield from _faulty_convolutions(context, case, layer, change)


def _faulty_convolutions(
    context: Context, case: KindCase, layer: Adapter, change: Tensor
) -> Iterator[tuple[Diagnosis, Tensor]]:
    """With the right base path and another update: ``change`` (out, in) is the right one."""
    rows, W = case.rows(case.input), case.weight.double()
    base = rows @ W.mT + (0 if case.bias_vector is None else case.bias_vector.double())
    if case.groups > 1:
        values = {n: case.of_first_group(v) for n, v in layer.parameters().items()}
        with torch.no_grad():
            wrong, _ = paper.effective(context.forward, W, None, values, case.spec)
        yield GROUPS_IGNORED, base + rows @ (wrong - W).mT
    if max(case.two(case.stride)) > 1:
        yield STRIDE_IGNORED, base + case.rows_from_the_corner(case.input) @ change.mT
    if case.padding_mode != "zeros":
        yield PADDED_WITH_ZEROS, base + replace(case, padding_mode="zeros").rows(case.input) @ change.mT
    if case.positions > 1:
        turned = change.reshape(case.out_features, -1, case.positions).flip(-1).flatten(1)
        yield MIRRORED, base + rows @ turned.mT


def merged_without(case: KindCase, folded: object) -> Diagnosis | None:
    """The option in which the convolution that a layer was merged into is not the layer's."""
    base = case.base()
    if not (isinstance(folded, nn.Conv2d) and isinstance(base, nn.Conv2d)):
        return None
    other = (o for o in MERGED_WITHOUT if getattr(folded, o) != getattr(base, o))
    return next((MERGED_WITHOUT[option] for option in other), None)

"""Where dropout acts, read from outputs whose masks another generator than torch's has drawn.

The catalogue's wrong places are held against a subject under torch's own masks elsewhere. A library with a generator of
its own drops other entries: here each row of the output is asked for the mask that gives it, if any does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare.layer import Layer, adapt
from harness.compare.probing import alike, masked
from harness.compare.thresholds import NOTHING_DROPPED
from oracles.mistakes import Mistake, compose, mistaken
from oracles.variants.record import Call, Form

WIDEST = 8  # entries that one row drops: each more doubles what is tried


def every_mask(width: int, rate: float) -> Tensor:
    """(2^width, width) float64: what a row of inverted dropout can be multiplied by, of 0 and 1/(1 − rate)."""
    kept = torch.tensor([0.0, 1 / (1 - rate)], dtype=torch.float64)
    return torch.cartesian_prod(*[kept] * width).reshape(-1, width)


def place_under_own_masks(case: Case, layer: Layer, base: Tensor, rounds: int) -> Mistake | None:
    """The first catalogued place at which some mask of each row gives what ``layer``, in training mode, answers.

    None where there is no such place, and where the masks are torch's, which the search of a diagnosis knows. ``base``:
    the weight (out, in) that the adapter acts on.
    """
    outputs = [masked(layer, case.x, seed) for seed in range(rounds)]
    values = layer.values() | ({case.variant.base.name: base} if case.variant.base else {})
    for mistake in case.variant.mistakes:
        if mistake.parts == {"place"} and _gives(compose([mistake]), case, outputs, values):
            return None if _by_torchs_masks(mistake, case, outputs[0], values) else mistake
    return None


def drops_its_output(layer: Layer, case: Case, evaluated: Tensor, rounds: int) -> bool:
    """Whether in training mode each entry of the output is 0 or 1/(1 − p) times the one that is ``evaluated``.

    Whatever function of x that is. Where whole rows are dropped, an x of one feature could have been.
    """
    outputs = torch.stack([masked(layer, case.x, seed) for seed in range(rounds)])
    dropped = outputs == 0
    kept = torch.where(dropped, 0.0, evaluated / (1 - case.spec.dropout))
    partly = dropped.any(-1) & ~dropped.all(-1)
    return bool(partly.any()) and alike(outputs, kept, NOTHING_DROPPED)


def _by_torchs_masks(mistake: Mistake, case: Case, output: Tensor, values: Mapping[str, Tensor]) -> bool:
    """Whether it is the first output under the mask that torch's generator draws."""
    theirs = adapt(mistaken(mistake.id), case.base(), case.spec)
    theirs.write(dict(values))
    theirs.train()
    return alike(output, masked(theirs, case.x, 0), NOTHING_DROPPED)


def _gives(form: Form, case: Case, outputs: Sequence[Tensor], values: Mapping[str, Tensor]) -> bool:
    width = _width(form, case, values)
    if width < 2:
        return False
    masks = every_mask(width, case.spec.dropout)
    with torch.no_grad():
        every = torch.stack([_called(form, case, values, mask.mul) for mask in masks])
    rows = torch.arange(len(case.x))
    drawn = [(every - y).square().sum(-1).argmin(0) for y in outputs]
    whole = masks[torch.cat(drawn)].std(1) == 0  # a row that is dropped or kept as a whole tells no place
    return not bool(whole.all()) and all(
        alike(y, every[best, rows], NOTHING_DROPPED) for y, best in zip(outputs, drawn, strict=True)
    )


def _width(form: Form, case: Case, values: Mapping[str, Tensor]) -> int:
    """How many entries a row of what is dropped has; 0 for more than can be tried, and for what is no row's."""
    dropped: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        dropped.append(t)
        return t

    _called(form, case, values, note)
    if len(dropped) != 1 or dropped[0].dim() != 2 or len(dropped[0]) != len(case.x):
        return 0
    return dropped[0].shape[1] if dropped[0].shape[1] <= WIDEST else 0


def _called(form: Form, case: Case, values: Mapping[str, Tensor], mask: Callable[[Tensor], Tensor]) -> Tensor:
    b = None if case.bias_vector is None else case.bias_vector.double()
    return form.called(Call(case.x.double(), case.weight.double(), b, values, case.spec, mask=mask))

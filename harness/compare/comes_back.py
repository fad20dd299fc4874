"""As what a slot comes back that does not come back as it was saved: its start, turned, another's, a multiple."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare import rounding, saved_files, saving
from harness.compare.context import Context
from harness.compare.layer import Layer, adapt
from harness.compare.outcome import Deviation
from harness.compare.probing import coefficient
from harness.compare.saving import AT_LOAD, load
from harness.compare.thresholds import SAME_UPDATE
from oracles.seeding import seed_torch
from reports.model import Diagnosis

LOST = Diagnosis(
    "save_load.not_saved",
    "the loaded adapter starts anew with {}, which the saved file lacks",
    "what is deployed from the checkpoint would lack what {} held when it was saved",
    remedy="save {} with the other tensors, and read the file back into the adapter",
)
UNREAD = Diagnosis(
    "save_load.not_read",
    "the loaded adapter starts anew with {}, which the saved file holds",
    "what is deployed from the checkpoint would lack what {} held when it was saved",
    remedy="look {} up under the name of saving, and raise where a name is not found",
)
TURNED = Diagnosis(
    "save_load.turned",
    "loading gives {} transposed",
    "what is deployed from the checkpoint would be another model than the one that was trained",
    remedy="save and load {} in one and the same layout, for square shapes, too",
)
EXCHANGED = Diagnosis(
    "save_load.exchanged",
    "loading gives {} the values of another tensor of the adapter",
    "what is deployed from the checkpoint would be another model than the one that was trained",
    remedy="save and load each tensor under a name of its own",
)
MULTIPLE = Diagnosis(
    "save_load.multiple",
    "loading gives {} times a constant",
    "what is deployed from the checkpoint would be another model than the one that was trained",
    remedy="apply no factor to {} on saving that is not taken out on loading",
)

NORMALISED = Diagnosis(
    "save_load.normalised",
    "loading gives {} with columns or rows of length one: their lengths are lost",
    "the output may be the same, and training that goes on from the file takes steps of another size",
    remedy="save {} as it is trained, and not what forward makes of it",
)


def same_slots(
    context: Context,
    case: Case,
    before: Layer,
    after: Layer,
    path: Path,
    *,
    onto: Case | None = None,
    but: frozenset[str] = frozenset(),
) -> None:
    """Raise Deviation unless every slot came back, bit for bit; with what it is instead, where that has a name.

    ``onto``: the case whose base it was loaded onto, ``case``'s by default; ``but``: slots that may differ.
    """
    try:
        saving.same_slots(context, case, before, after, but=but, path=path)
    except Deviation as found:
        found.diagnosis = found.diagnosis or _instead(context, case, before, after, path, onto or case, but)
        raise


def _instead(
    context: Context,
    case: Case,
    before: Layer,
    after: Layer,
    path: Path,
    onto: Case,
    but: frozenset[str],
) -> Diagnosis | None:
    """What the slots that did not come back are instead, where all of them are the same; else None."""
    names = [n for n in before.names if n not in but]
    if not after.slots.keys() >= set(names):
        return None
    lost = [n for n in names if not rounding.same_values(before.value(n), after.value(n))]
    file = saved_files.all_tensors(path)
    starts, again = _start(context, onto), load(context, onto.base(), case, path, AT_LOAD + 1)

    def told(name: str) -> Diagnosis | None:
        now = after.value(name)
        if has(starts, name, now) or not has(again, name, now):  # what is drawn is another in every load
            return UNREAD if _held(file, before, name) else LOST
        return _of_one(name, before, after)

    first, *others = map(told, lost)
    if first is None or any(other is not first for other in others) or (first is LOST and not file):
        return None
    return _named(first, " and ".join(lost))


def _named(told: Diagnosis, names: str) -> Diagnosis:
    said = {f: getattr(told, f).format(names) for f in ("summary", "failure_mode", "remedy")}
    return dataclasses.replace(told, **said)


def _start(context: Context, case: Case) -> Layer:
    """A fresh adapter, as it is where loading begins."""
    seed_torch(case.seed + AT_LOAD)
    return adapt(context.subject, case.base(), case.spec)


def _held(file: dict[str, Tensor], layer: Layer, name: str) -> bool:
    return any(saved_files.holds(file, t) for t in (layer.value(name), layer.raw(name).detach()))


def has(layer: Layer, name: str, value: Tensor) -> bool:
    """Whether a slot is there and holds that value."""
    return name in layer.names and _same(layer.value(name), value)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and rounding.same_values(a, b)


def _of_one(name: str, before: Layer, after: Layer) -> Diagnosis | None:
    """What a slot's values show by themselves."""
    was, now = before.value(name), after.value(name)
    others = (before.value(n) for n in before.names if n != name)
    shown: dict[Callable[[], bool], Diagnosis] = {
        lambda: was.dim() > 1 and _same(now, was.mT): TURNED,
        lambda: any(
            _same(now, each) or (each.dim() > 1 and _same(now, each.mT)) for each in others
        ): EXCHANGED,
        lambda: _is_multiple(now, was): MULTIPLE,
        lambda: _is_normalised(now, was): NORMALISED,
    }
    return next((told for holds, told in shown.items() if holds()), None)


def _is_normalised(now: Tensor, was: Tensor) -> bool:
    """Whether the columns, or the rows, are those that were saved, divided by their norms."""
    if now.shape != was.shape or was.dim() != 2:
        return False
    units = (was / torch.linalg.vector_norm(was, dim=dim, keepdim=True) for dim in (0, 1))
    return any(
        float((now - unit).norm()) <= SAME_UPDATE * float(unit.norm()) and not _same(unit, was)
        for unit in units
    )


def _is_multiple(now: Tensor, was: Tensor) -> bool:
    if now.shape != was.shape or was.numel() < 2 or not bool(was.any()):
        return False
    c = coefficient(now, was)
    return abs(c - 1) > SAME_UPDATE and float(torch.linalg.vector_norm(now - c * was)) <= SAME_UPDATE * float(
        torch.linalg.vector_norm(now)
    )

"""What of an adapter's file a model computes with otherwise: its scale, a tensor that stays at its start, a bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.implementation import AdapterSpec
from oracles.variants import VARIANTS
from oracles.vectors.corpus import Vector
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.update import LowRank, Magnitude, Replace, Update
from reports.model import Diagnosis

IsNear = Callable[[Tensor, Tensor], bool]
Explained = tuple[Diagnosis, str]  # what is told, and how it shows
RUNS_AS_ANOTHER = "the checkpoint runs as another model than the one that was saved"
SCALE = Diagnosis(
    "checkpoints.scale_misread", "the scale of a checkpoint in PEFT's format is misread", RUNS_AS_ANOTHER
)
LOST = Diagnosis(
    "checkpoints.lost",
    "what a checkpoint holds beside its factors is lost",
    "a bias, a head or a tied embedding of the trained model is missing after loading",
)


def misread(vector: Vector, found: Mapping[str, Tensor], near: IsNear) -> Explained | None:
    """What explains every tensor of a model that is not the file's; None where nothing known does."""
    wrong = {n: t.double() for n, t in found.items() if not near(t.double(), vector.merged[n])}
    modules = AdapterFolder(vector.adapter).against(BaseCheckpoint(vector.base))
    updates = {name: update for module in modules for name, update in module.updates().items()}
    of_shape = all(t.shape == vector.merged[n].shape for n, t in wrong.items())
    if not wrong or not wrong.keys() <= updates.keys() or not of_shape:
        return None
    if all(_is_beside(updates[n], n) and near(t, vector.untied[n]) for n, t in wrong.items()):
        return LOST, f"as the base has {', '.join(sorted(wrong)[:3])}"
    return _scaled(vector, wrong, updates, near) or _unread(vector, wrong, modules, near)


def _is_beside(update: Update, name: str) -> bool:
    """Whether a tensor is held whole, or is a bias of the factors."""
    return isinstance(update, Replace) or (isinstance(update, LowRank) and name.endswith(".bias"))


def _scaled(
    vector: Vector, wrong: Mapping[str, Tensor], updates: Mapping[str, Update], near: IsNear
) -> Explained | None:
    """The scale, where a factor on what the adapter adds gives each of the tensors, a weight among them."""
    factors = {n: _factor(updates[n], vector.untied[n], t, near) for n, t in wrong.items()}
    matrices = {n: f for n, f in factors.items() if wrong[n].dim() > 1}
    if None in factors.values() or not matrices:
        return None
    name, factor = min(matrices.items())
    return SCALE, f"{name} is the file's with {factor:.4g} times the scale"


def _factor(update: Update, base: Tensor, found: Tensor, near: IsNear) -> float | None:
    """How many times its scale the update has in a tensor; None where it is not at all there, or not this update."""
    if _low(update) is None:
        return None
    factor = _fitted(update, base, found)
    is_there = not near(found, _times(update, 0.0).apply(base))
    return factor if is_there and near(found, _times(update, factor).apply(base)) else None


def _fitted(update: Update, base: Tensor, found: Tensor) -> float:
    """The factor that comes nearest by least squares."""
    low = _low(update)
    assert low is not None
    at = low.times(0.0).apply(base)
    step, away = low.apply(base) - at, at - found
    if isinstance(update, Magnitude):  # its rows, or columns, are known but for their lengths
        axis = 0 if update.by_columns else 1
        unit = torch.nn.functional.normalize(found, dim=axis)
        away, step = (t - unit * (unit * t).sum(axis, keepdim=True) for t in (at, step))
    return -float((away * step).sum() / (step * step).sum())


def _low(update: Update) -> LowRank | None:
    """The product of two factors in an update."""
    low = update.low if isinstance(update, Magnitude) else update
    return low if isinstance(low, LowRank) else None


def _times(update: Update, factor: float) -> Update:
    """The update with so many times its scale."""
    low = _low(update)
    assert low is not None
    if isinstance(update, Magnitude):
        return Magnitude(low.times(factor), update.magnitude, update.by_columns)
    return low.times(factor)


def _unread(
    vector: Vector, wrong: Mapping[str, Tensor], modules: list[AdaptedModule], near: IsNear
) -> Explained | None:
    """A tensor of the method's that is at its start, whatever the file holds; what is the base's is not applied."""
    if all(near(t, vector.untied[n]) for n, t in wrong.items()):
        return None
    for name in sorted({name for module in modules for name in module.factors}):
        at_start = {n: u for module in modules for n, u in _started(vector, module, name)}
        if all(n in at_start and near(t, at_start[n].apply(vector.untied[n])) for n, t in wrong.items()):
            summary = f"{name} of a checkpoint is not read: the model computes with its start on this base"
            told = Diagnosis(f"checkpoints.unread.{name}", summary, RUNS_AS_ANOTHER)
            return told, f"equals the file's with the initial {name}"
    return None


def _started(vector: Vector, module: AdaptedModule, name: str) -> Iterator[tuple[str, Update]]:
    """A linear layer's updates with one tensor at the start that it has on this weight."""
    known = {t.name: t.exact for t in VARIANTS[module.method.id].tensors} if module.factors else {}
    start = known.get(name)
    if start is None or module.kind != "linear" or name not in module.factors:
        return
    spec = AdapterSpec(module.method.id, rank=module.rank, alpha=module.alpha, rslora=module.rslora)
    value = start(vector.untied[module.named(module.parameter)], spec)
    other = dataclasses.replace(module, factors={**module.factors, name: value})
    yield from other.updates().items()


__all__ = ["RUNS_AS_ANOTHER", "misread"]

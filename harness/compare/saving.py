"""An adapter saved by the subject and loaded again, in a folder that goes afterwards."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from harness.cases.layer_cases import Case
from harness.compare import rounding, saved_files
from harness.compare.context import Context
from harness.compare.layer import Layer, answering, as_layer
from harness.compare.outcome import Deviation, NotOffered
from harness.compare.probing import far_layer
from oracles.implementation import Unsupported
from oracles.seeding import seed_torch
from reports.model import Diagnosis

# Added to the case's seed when an adapter is loaded: torch's generator is not in the state of when it was made.
AT_LOAD = 77


@contextmanager
def saved(context: Context, case: Case) -> Iterator[tuple[Layer, Path]]:
    """The subject at parameters far from the start, and where it saved itself; the folder goes afterwards."""
    layer = far_layer(context, case)
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        path = Path(folder) / "saved" / "adapter"
        path.parent.mkdir()
        here = set(Path().iterdir())
        offered(context, lambda: context.subject.save(layer.adapted, path), "save")
        _nothing_beside(context, case, path, set(Path().iterdir()) - here)
        yield layer, path


def _nothing_beside(context: Context, case: Case, path: Path, more: set[Path]) -> None:
    """``save`` wrote to ``path`` (or that name with a suffix) and nowhere else within sight."""
    folder = path.parent.parent
    found = [p for p in folder.rglob("*") if p != path.parent and path not in (p, *p.parents)]
    strays = [p.name for p in found if not (p.parent == path.parent and p.name.startswith(path.name))]
    strays += [p.name for p in more]
    context.demand(
        not strays, case, "files that save wrote beside its path", "none", ", ".join(sorted(strays))
    )


def offered(context: Context, call: Callable[[], object], method: str) -> object:
    """The call's answer; NotOffered where the subject has no such method."""
    try:
        with answering(context.subject.name, method):
            return call()
    except Unsupported as why:
        raise NotOffered(why, method) from why


def load(context: Context, base: nn.Linear, case: Case, path: Path, seed: int = AT_LOAD) -> Layer:
    """The adapter at ``path`` on ``base``, torch's generator in another state than when it was made."""
    seed_torch(case.seed + seed)
    return as_layer(
        offered(context, lambda: context.subject.load(base, case.spec, path), "load"), context.subject, "load"
    )


IN_HALF = Diagnosis(
    "save_load.saved_in_half",
    "the file holds in half precision what the adapter holds in full",
    "what is deployed from the checkpoint is a rounding of what was trained",
    remedy="save every tensor in the dtype in which the adapter holds it",
)
COMES_BACK_IN_HALF = dataclasses.replace(
    IN_HALF,
    summary="a saved adapter comes back rounded to half precision",
    remedy="save and load every tensor in the dtype in which the adapter holds it",
)


def same_slots(
    context: Context,
    case: Case,
    before: Layer,
    after: Layer,
    *,
    but: frozenset[str] = frozenset(),
    path: Path | None = None,
) -> None:
    """Raise Deviation unless every slot came back, bit for bit.

    ``path``: what was saved, in which is looked for the rounding of what comes back rounded.
    """
    for name in [n for n in before.names if n not in but]:
        context.demand(name in after.names, case, f"{name} after loading", "there", "missing")
        if rounding.same_values(before.value(name), after.value(name)):
            continue
        gap, half = "another shape", came_back_in(before, after, name)
        if before.value(name).shape == after.value(name).shape:
            gap = f"up to {float((before.value(name) - after.value(name)).abs().max()):.3g} away"
        known = None if path is None or half is None else _of_rounding(before, name, path)
        got = f"rounded to {half}, {gap}" if known else gap
        raise Deviation(case, f"{name} after loading", "bitwise as saved", got, diagnosis=known)


def came_back_in(before: Layer, after: Layer, name: str) -> str | None:
    """The half precision to which a slot was rounded on its way; None where that is not all that differs."""
    if before.raw(name).dtype.itemsize <= torch.half.itemsize:
        return None
    for was, now in ((before.value(name), after.value(name)), (before.raw(name), after.raw(name))):
        for half in saved_files.HALVES:
            if rounding.same_values(now.double(), was.to(half).double()):
                return saved_files.word_of(half)
    return None


def _of_rounding(before: Layer, name: str, path: Path) -> Diagnosis:
    """Which of the two is to be said of a slot that comes back rounded: the file's rounding, where it is there."""
    held = stored_in_half(before, name, saved_files.all_tensors(path))
    return IN_HALF if held else COMES_BACK_IN_HALF


def stored_in_half(layer: Layer, name: str, there: Mapping[str, torch.Tensor]) -> str | None:
    """The half precision in which files hold a slot that the layer holds with more digits; None where they do not."""
    if layer.raw(name).dtype.itemsize <= torch.half.itemsize:
        return None
    halves = (saved_files.held_in_half(there, t) for t in (layer.value(name), layer.raw(name).detach()))
    return next((saved_files.word_of(half) for half in halves if half), None)


def same_output(
    context: Context, case: Case, before: Layer, after: Layer, what: str, roundoffs: float = 1.0
) -> None:
    """Raise Deviation unless the output is that of the layer that was saved, ``roundoffs`` of its size apart."""
    with torch.no_grad():
        wanted, actual = before(case.x).double(), after(case.x).double()
    size = float(torch.linalg.vector_norm(wanted))
    context.judge(case, what, actual, wanted, roundoffs * rounding.roundoff(case.torch_dtype) * size)


def moved_by(case: Case, saved: Layer, loaded: Layer, otherwise: Layer) -> tuple[float, float]:
    """How far the round trip moves the output, and how far another setting at load moves it from there."""
    with torch.no_grad():
        y, own, other = (layer(case.x).double() for layer in (saved, loaded, otherwise))
    return float((own - y).norm()), float((other - own).norm())

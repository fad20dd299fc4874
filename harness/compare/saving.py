"""An adapter saved by the subject and loaded again, in a folder that goes afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from harness.cases.layer_cases import Case
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.layer import Layer, answering, as_layer
from harness.compare.outcome import NotOffered
from harness.compare.probing import far_layer
from oracles.implementation import Unsupported
from oracles.seeding import seed_torch


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


def load(context: Context, base: nn.Linear, case: Case, path: Path) -> Layer:
    """The adapter at ``path`` on ``base``, torch's generator in another state than when it was made."""
    seed_torch(case.seed + 77)
    return as_layer(
        offered(context, lambda: context.subject.load(base, case.spec, path), "load"), context.subject, "load"
    )


def same_slots(
    context: Context, case: Case, before: Layer, after: Layer, *, but: frozenset[str] = frozenset()
) -> None:
    """Raise Deviation unless every slot came back, bit for bit."""
    for name in [n for n in before.names if n not in but]:
        context.demand(name in after.names, case, f"{name} after loading", "there", "missing")
        same = rounding.same_values(before.value(name), after.value(name))
        gap = "another shape"
        if before.value(name).shape == after.value(name).shape:
            gap = f"up to {float((before.value(name) - after.value(name)).abs().max()):.3g} away"
        context.demand(same, case, f"{name} after loading", "bitwise as saved", gap)


def same_output(
    context: Context, case: Case, before: Layer, after: Layer, what: str, roundoffs: float = 1.0
) -> None:
    """Raise Deviation unless the output is that of the layer that was saved, ``roundoffs`` of its size apart."""
    with torch.no_grad():
        wanted, actual = before(case.x).double(), after(case.x).double()
    size = float(torch.linalg.vector_norm(wanted))
    context.judge(case, what, actual, wanted, roundoffs * rounding.roundoff(case.torch_dtype) * size)

"""Wrong readings of an adapter file, each a small change of its meaning, with the sentence that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from oracles.vectors.meaning import AdaptedModule, Reading
from oracles.vectors.update import Linear, Residual, Twice, Unchanged, Update


def wrong_readings(a: AdaptedModule) -> Iterator[Reading]:
    """Those that one module of an adapter file can meet; some may equal the right one at its numbers."""
    right = a.updates()
    yield Reading("not_applied", "the update is not applied", {n: Unchanged(u) for n, u in right.items()})
    changed = {n: u for n, u in right.items() if n.rpartition(".")[2] not in a.replaced}
    if changed:
        twofold = {n: twice(u) for n, u in changed.items()}
        yield Reading("applied_twice", "the update is applied twice", twofold)
        opposite: dict[str, Update] = {n: Linear(u, -1.0) for n, u in changed.items()}
        yield Reading("subtracted", "the update is subtracted", opposite)
    if a.replaced:
        kept: dict[str, Update] = {a.named(n): Unchanged() for n in a.replaced}
        yield Reading("saved.left_out", "a tensor that the file holds whole is not loaded", kept)
    for find in a.method.readings:
        yield from find(a)


def twice(update: Update) -> Update:
    """The same merge on what it left; a second residual is taken out of the first result."""
    if isinstance(update, Residual):
        return Linear(update, 2.0)
    return Twice(update, dataclasses.replace(update))  # type: ignore[type-var]

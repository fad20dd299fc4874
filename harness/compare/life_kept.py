"""What a step of an adapter's life has to leave as it was, and what has to come back from a file."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from harness.compare import rounding
from harness.compare.layer import Layer
from harness.compare.life import Done, Life
from harness.compare.life_faults import named
from harness.compare.life_model import State
from harness.compare.outcome import Deviation
from harness.compare.saving import same_slots
from harness.compare.thresholds import ROUNDOFFS

ROUNDED = named(
    "rounded_at_load",
    "an adapter in float64 comes back rounded to float32",
    "training that goes on in double precision goes on from other numbers",
    "make the loaded adapter in the dtype of the file, or of the base, before its tensors are copied",
)


def _is_rounded(saved: Layer, loaded: Layer, but: frozenset[str]) -> bool:
    """Whether what came back is what was saved, but for its digits beyond float32."""
    names = [name for name in saved.names if name not in but]
    if any(name not in loaded.names for name in names):
        return False
    pairs = [(saved.value(name).float(), loaded.value(name).float()) for name in names]
    return all(rounding.same_values(was, now) for was, now in pairs)


def came_back(layer: Life, done: Done) -> None:
    """The loaded layer has the adapter's tensors bit for bit, and computes what it does alone on the base."""
    name, loaded = done.step[1], done.answer
    bases = frozenset(t.name for t in layer.case.variant.tensors if t.role == "base")
    try:
        same_slots(layer.context, layer.case, layer.handles[name], loaded, but=bases)
    except Deviation as found:
        if _is_rounded(layer.handles[name], loaded, bases):
            found.diagnosis = ROUNDED
        raise
    with torch.no_grad():
        y = loaded(layer.case.x).double()
    alone = State((name,), layer.states[0].composed)
    layer.judge(f"output of {name} after loading", y, [alone], ROUNDOFFS["fresh adapter"])


def as_before(layer: Life, done: Done) -> None:
    """Output, tensors and what is trained are as before a step that is watched."""
    demand, case = layer.context.demand, layer.case
    same_output = rounding.same_values(layer.output(), done.output)
    demand(same_output, case, f"output {done.after}", "as before", "another")
    now = layer.values()
    changed = [
        f"{n}'s {t}"
        for n, held in done.values.items()
        for t in held
        if not rounding.same_values(held[t], now[n][t])
    ]
    demand(not changed, case, f"tensors {done.after}", "as before", ", ".join(changed))
    demand(layer.trained() == done.trained, case, f"tensors that are trained {done.after}",
           listed(done.trained), listed(layer.trained()))  # fmt: skip


def listed(names: Iterable[tuple[str, str]]) -> str:
    """(adapter, tensor) in words."""
    return ", ".join(f"{name}'s {tensor}" for name, tensor in sorted(names)) or "none"

"""What a vector's folder means in numbers: ΔW of every tensor, the logits, and the same of its wrong readings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.vectors.bases import base_tensors, inputs
from oracles.vectors.chain import Config, run
from oracles.vectors.draft import Draft
from oracles.vectors.meaning import Reading
from oracles.vectors.readings import wrong_readings
from oracles.vectors.update import Update

APART = 0.01  # no two readings of a vector come closer than this, in units of ‖ΔW‖
Deltas = dict[str, Tensor]


@dataclass(frozen=True)
class WrongReading:
    """One wrong consumer's ΔW, and how far it is from the right one, in units of ‖ΔW‖."""

    id: str
    sentence: str
    deltas: Deltas
    distance: float


@dataclass(frozen=True)
class Expected:
    """All numbers of one vector, float64."""

    base: Deltas  # the base's tensors, tied ones under both names
    deltas: Deltas
    logits: list[Tensor]
    wrong: list[WrongReading]

    @property
    def merged(self) -> Deltas:
        """The tensors that change, changed."""
        return {name: self.base[name] + delta for name, delta in self.deltas.items()}


def untied(config: Config) -> Deltas:
    """Every tensor of the base under every name it has."""
    tensors = base_tensors(config)
    return {**tensors, **{new: tensors[old] for new, old in config.get("tied", {}).items()}}


def _right(draft: Draft) -> dict[str, Update]:
    """Full tensor name -> update, of the right reading."""
    return {name: update for module in draft.modules for name, update in module.updates().items()}


def _readings(draft: Draft) -> dict[str, Reading]:
    """The wrong readings of the whole file: each module's of the same name together."""
    found: dict[str, Reading] = {}
    for module in draft.modules:
        for reading in wrong_readings(module):
            before = found.get(reading.id)
            updates = {**(before.updates if before else {}), **reading.updates}
            found[reading.id] = Reading(reading.id, reading.sentence, updates)
    return found


def _deltas(updates: Mapping[str, Update], base: Deltas) -> Deltas:
    return {name: update.apply(base[name]) - base[name] for name, update in updates.items()}


def expect(draft: Draft) -> Expected:
    """The numbers of a vector; raises ValueError where two of its readings come too close."""
    base = untied(draft.model)
    right = _deltas(_right(draft), base)
    found = Expected(base, right, [], [] if draft.without_readings else _wrong(draft, base, right))
    missing = set(draft.must) - {reading.id for reading in found.wrong}
    if missing:
        raise ValueError(f"{draft.id} does not tell {', '.join(sorted(missing))} from the right reading")
    logits = [run(draft.model, {**base, **found.merged}, x) for x in inputs(draft.model)]
    return Expected(base, right, logits, found.wrong)


def _candidates(draft: Draft, base: Deltas, right: Deltas) -> dict[str, tuple[str, Deltas]]:
    found = {r.id: (r.sentence, {**right, **_deltas(r.updates, base)}) for r in _readings(draft).values()}
    names = [module.module for module in draft.modules]
    if len(set(names)) > 1:
        kept = {n: d if n.rpartition(".")[0] == names[0] else torch.zeros_like(d) for n, d in right.items()}
        found["modules.first_only"] = ("only the first module is adapted", kept)
    for reading, moves in draft.moved.items():
        found[reading] = (
            f"the update lands on another module ({_arrows(moves)})",
            _moved(right, base, moves),
        )
    if draft.tied:
        source = draft.model["tied"][draft.tied]
        also = {**right, draft.tied: right.get(draft.tied, 0) + right[source]}
        found["tie.follows"] = (f"{draft.tied} changes with {source}, to which it is tied", also)
    return found


def _arrows(moves: Mapping[str, str]) -> str:
    return ", ".join(f"{a} to {b}" for a, b in moves.items())


def _moved(right: Deltas, base: Deltas, moves: Mapping[str, str]) -> Deltas:
    found: Deltas = {}
    for name, delta in right.items():
        module, _, tensor = name.rpartition(".")
        if module in moves:
            found.setdefault(name, torch.zeros_like(delta))
            name = f"{moves[module]}.{tensor}"
        found[name] = delta
    return found


def _wrong(draft: Draft, base: Deltas, right: Deltas) -> list[WrongReading]:
    """Those that the vector tells from the right one and from each other, the ones it exists for first."""
    candidates = _candidates(draft, base, right)
    order = [*draft.must, *(name for name in candidates if name not in draft.must)]
    kept: list[WrongReading] = []
    for name in order:
        if name not in candidates:
            continue
        sentence, deltas = candidates[name]
        distance = apart(deltas, right, right)
        if not distance >= APART or any(apart(deltas, k.deltas, right) < APART for k in kept):
            if name in draft.must:
                raise ValueError(f"{draft.id}: {name} comes within {APART:.0%} of another reading")
            continue
        kept.append(WrongReading(name, sentence, deltas, distance))
    return kept


def apart(a: Deltas, b: Deltas, unit: Deltas) -> float:
    """‖a - b‖ / ‖unit‖ over all tensors; infinite where a reading is not a number."""
    zero = torch.zeros(())
    names = set(a) | set(b)
    gap = sum(float((a.get(n, zero) - b.get(n, zero)).square().sum()) for n in sorted(names))
    size = sum(float(d.square().sum()) for d in unit.values())
    return float("inf") if gap != gap else (gap / size) ** 0.5 if size else 0.0


def closest_pair(expected: Expected) -> float:
    """The smallest distance between any two readings of a vector, the right one among them."""
    all_readings = [expected.deltas, *(w.deltas for w in expected.wrong)]
    pairs = itertools.combinations(all_readings, 2)
    return min((apart(a, b, expected.deltas) for a, b in pairs), default=float("inf"))

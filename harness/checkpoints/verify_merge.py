"""Is this merged checkpoint the base with this adapter? Tensor by tensor, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.checkpoints import merge_judgement as judgement
from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.checkpoints.merge_judgement import Judgement, Question, Rows
from harness.checkpoints.rounding_replay import Dtypes
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.readings import wrong_readings
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.update import Linear, LowRank, Unchanged, Update


@dataclass(frozen=True)
class Asked:
    """One tensor of the adapter: what should be done to it, and the readings that are wrong."""

    right: Update
    wrong: Mapping[str, tuple[str, Update]]


def questions(modules: list[AdaptedModule]) -> dict[str, Asked]:
    """Full tensor name -> what is asked of it."""
    found: dict[str, Asked] = {}
    for module in modules:
        readings = list(wrong_readings(module))
        for name, right in module.updates().items():
            wrong = {r.id: (r.sentence, r.updates[name]) for r in readings if name in r.updates}
            found[name] = Asked(right, wrong | _shares(right))
    return found


def _shares(right: Update) -> dict[str, tuple[str, Update]]:
    """Parts and multiples of an update that is added, for where it is too small to be measured."""
    if not isinstance(right, LowRank):
        return {}
    words = {0.25: "a quarter of the update", 0.5: "half the update", 4.0: "four times the update"}
    return {f"scale.times_{f:g}": (f"{text} is applied", Linear(right, f)) for f, text in words.items()}


class Verification:
    """The three folders; iterate over it for one judgement per tensor of the model."""

    def __init__(self, base: Path, adapter: Path, merged: Path) -> None:
        """Raises Unreadable."""
        self.base, self.merged = BaseCheckpoint(base), BaseCheckpoint(merged)
        folder = AdapterFolder(adapter)
        self.asked = questions(folder.against(self.base))
        self.adapter_dtype = folder.dtype
        if not set(self.base.names) & set(self.merged.names):
            ours, theirs = self.base.names[0], self.merged.names[0]
            raise Unreadable(f"base and merged checkpoint have no tensor in common: {ours!r}, {theirs!r}")
        self.names = sorted({*self.asked, *self.base.names, *self.merged.names})
        self.packed = self._packed()

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Judgement]:
        for name in self.names:
            yield self._judge(name)

    def _packed(self) -> tuple[str, ...]:
        """Modules, each with a dot, that have whole numbers where the base has a floating-point weight: quantised."""
        found = set()
        for name in self.merged.tensors.names:
            module, weight = name.rpartition(".")[0], self.base.stored(f"{name.rpartition('.')[0]}.weight")
            if weight is None or not self.base.tensors.dtype(weight).is_floating_point:
                continue
            whole = not self.merged.tensors.dtype(name).is_floating_point
            if whole and (name == f"{module}.weight" or self.base.stored(name) is None):
                found.add(f"{module}.")
        return tuple(sorted(found))

    def _judge(self, name: str) -> Judgement:
        old, new = self.base.stored(name), self._merged(name)
        if name.startswith(self.packed) and (old is None or new is None):
            reason = "of a module that is quantised in a format that is not read here"
            return Judgement(name, judgement.INCONCLUSIVE, reason)
        if (old is None or new is None) and self._is_buffer(name):
            return Judgement(name, judgement.VERIFIED, "a buffer that is not always saved")
        if old is None:
            return Judgement(name, judgement.CHANGED, "the base does not have this tensor")
        if new is None:
            return Judgement(name, judgement.MISSING, "the merged checkpoint does not have this tensor")
        before, after = self.base.tensors.shape(old), self.merged.tensors.shape(new)
        stored = self.merged.tensors.dtype(new)
        asked = self.asked.get(name)
        same_kind = before == after and stored == self.base.tensors.dtype(old)
        if before != after or not (stored.is_floating_point or (asked is None and same_kind)):
            return self._other_shape(name, before, after, stored)
        return self._untouched(name, old, new) if asked is None else self._updated(name, old, new, asked)

    def _merged(self, name: str) -> str | None:
        """Where the merged checkpoint holds a tensor, which may still be tied there as it was in the base."""
        found = self.merged.stored(name)
        if found is None and name in self.base.ties:
            return self.merged.stored(self.base.ties[name])
        return found

    def _is_buffer(self, name: str) -> bool:
        """Tables and masks that libraries save or leave out as they like."""
        held = self.base if name in self.base.tensors else self.merged
        floating = name in held.tensors and held.tensors.dtype(name).is_floating_point
        return not floating or name.endswith((".inv_freq", ".masked_bias"))

    def _other_shape(
        self, name: str, before: tuple[int, ...], after: tuple[int, ...], stored: torch.dtype
    ) -> Judgement:
        kind = str(stored).removeprefix("torch.")
        if not stored.is_floating_point:
            reason = f"stored as {kind}, shape {after}: quantised in a format that is not read here"
            return Judgement(name, judgement.INCONCLUSIVE, reason)
        return Judgement(name, judgement.CHANGED, f"shape {after}, the base's is {before}")

    def _rows(self, old: str, new: str, matrix: tuple[int, int]) -> Rows:
        def rows() -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
            merged = self.merged.tensors.blocks(new, matrix)
            for (at, W), (_, M) in zip(self.base.tensors.blocks(old, matrix), merged, strict=True):
                yield at, W, M

        return rows

    def _updated(self, name: str, old: str, new: str, asked: Asked) -> Judgement:
        matrix = asked.right.matrix(self.base.tensors.shape(old))
        dtypes = Dtypes(self.base.tensors.dtype(old), self.adapter_dtype, self.merged.tensors.dtype(new))
        return judgement.judge(Question(name, asked.right, asked.wrong, dtypes, self._rows(old, new, matrix)))

    def _untouched(self, name: str, old: str, new: str) -> Judgement:
        matrix = Unchanged().matrix(self.base.tensors.shape(old))
        for _, W, M in self._rows(old, new, matrix)():
            if not torch.equal(W.to(M.dtype), M):
                return Judgement(name, judgement.CHANGED, self._why_changed(name, old, new))
        return Judgement(name, judgement.VERIFIED, "the base's, as it should be")

    def _why_changed(self, name: str, old: str, new: str) -> str:
        partner = next((n for n in self.asked if n != name and self.base.stored(n) == old), None)
        if partner is not None and self._merged(partner) == new:
            return f"it is one tensor with {partner}, whose update it carries too"
        return "the adapter does not name this tensor, and it is not the base's"


def exit_code(judgements: list[Judgement]) -> int:
    """0 all verified, 1 something is wrong, 3 something could not be decided."""
    verdicts = {j.verdict for j in judgements}
    if verdicts & set(judgement.WRONG):
        return 1
    return 3 if judgement.INCONCLUSIVE in verdicts else 0

"""A checkpoint on its way from one library to another: whether what arrives is the adapter, and if not, why.

The receiver with the file is compared with the receiver at the sender's parameters, too: where these are one, the
file carried all there is to carry, and what the two libraries compute of it is asked elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare import rounding, saved_files
from harness.compare.context import Context
from harness.compare.layer import Layer
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.compare.probing import coefficient, is_the_bases, masked, without_adapter
from harness.compare.saving import came_back_in
from harness.compare.thresholds import ROUNDOFFS, SAME_UPDATE, THRESHOLDS
from oracles.implementation import Implementation
from reports.model import Diagnosis
from reports.text import listed, shortened

PLACE = "base_model.model.layer"  # what PEFT calls the one layer that the audit has it adapt
LAYERS_IN = ("target_modules", "feedforward_modules")  # fields of PEFT's configuration that name layers
NAMED = 200  # characters of names in a note


@dataclass(frozen=True)
class Passage:
    """An adapter with the sender and, out of its file, with the receiver; ``receiver``: a fresh adapter of that one.

    ``asked_of_file``: whether it is asked elsewhere if the sender's file holds every digit.
    """

    case: Case
    sender: Layer
    arrived: Layer
    receiver: Layer
    asked_of_file: bool = False

    def outputs(self, *layers: Layer) -> list[Tensor]:
        """What layers answer, under equal masks where one drops out although it should not."""
        return [masked(layer, self.case.x, self.case.seed) for layer in layers]

    def judge(self, context: Context, what: str) -> None:
        """Raise Deviation where the receiver's output is not the sender's and the file is why.

        Raises ToldElsewhere where it is not: the receiver computes the same of the sender's own parameters.
        """
        wanted, got = self.outputs(self.sender, self.arrived)
        try:
            context.judge(self.case, what, got, wanted, self._size(wanted))
        except Deviation as found:
            if self._is_received():
                raise ToldElsewhere(*self._elsewhere()) from None
            raise found.with_note(self._in_what_way(wanted, got)) from None

    def _size(self, output: Tensor) -> float:
        return ROUNDOFFS["interchange"] * rounding.roundoff(self.case.torch_dtype) * rounding.norm(output)

    def _is_received(self) -> bool:
        """Whether the receiver answers from the file what it answers at the parameters that were sent."""
        if not all(map(self._can_be_set, self.receiver.names)):
            return False
        self.receiver.write(self.sender.values())
        self.receiver.write({name: self.arrived.value(name) for name in self._rounded()})
        expected, got = self.outputs(self.receiver, self.arrived)
        return rounding.ratio(got, expected, self._size(expected)) <= THRESHOLDS["formula"]

    def _can_be_set(self, name: str) -> bool:
        """Whether the sender tells what the receiver has to have in a slot, or nothing is ever sent for it."""
        known = self.case.variant.tensor(name)
        if known is None or known.role == "base" or name in self._shared(self.receiver):
            return True
        return known.role != "parameter" and known.exact is not None

    def _shared(self, other: Layer) -> list[str]:
        """The slots that the sender has in the same shape."""
        common = [n for n in other.names if n in self.sender.names]
        return [n for n in common if other.view(n).shape == self.sender.view(n).shape]

    def lost(self) -> list[str]:
        """The tensors that do not arrive as they were sent."""
        return [n for n in self._shared(self.arrived) if not self._is_as_sent(n)]

    def _is_as_sent(self, name: str) -> bool:
        return rounding.same_values(self.sender.value(name), self.arrived.value(name))

    def _rounded(self) -> list[str]:
        """The slots that arrive rounded to half precision, where that is asked elsewhere."""
        lost = self.lost() if self.asked_of_file else []
        return [n for n in lost if came_back_in(self.sender, self.arrived, n)]

    def _elsewhere(self) -> tuple[str, str]:
        if self._rounded():
            return "the tensors arrive rounded to half precision", "save_load.round_trip"
        return "the tensors arrive, and the subject computes otherwise of them", "forward.random_parameters"

    def _in_what_way(self, wanted: Tensor, got: Tensor) -> str:
        """Which tensors are lost or, where none is, by how much the adapter contributes more, where that is all."""
        if lost := self.lost():
            return f"{listed(lost)} {'does' if len(lost) == 1 else 'do'} not arrive as sent"
        base = without_adapter(self.case, self.sender.values())
        was, now = wanted - base, got - base
        factor = coefficient(now, was) if bool(was.any()) else 1.0
        if rounding.norm(now - factor * was) > SAME_UPDATE * rounding.norm(was):
            return ""
        return f"what arrives contributes {factor:.4g} times what was sent"


NO_NAME = Diagnosis(
    "save_load.no_name_of_pefts",
    "PEFT finds none of the file's tensors by their names",
    "an adapter that is handed to PEFT would not be there",
    remedy="write the tensors under the names that PEFT reads",
)
ANSWERS_AS_THE_BASE = dataclasses.replace(NO_NAME, summary=f"{NO_NAME.summary}: it answers as the base")
SOME_NAMES = Diagnosis(
    "save_load.not_every_name_of_pefts",
    "PEFT looks in the file for tensors that it does not find by their names, and loads the others",
    "an adapter that is handed to PEFT would be another one",
    remedy="write every tensor of the adapter, under the name that PEFT reads",
)


def explained(found: Deviation, passage: Passage, path: Path, peft: Implementation) -> Deviation:
    """The deviation of a file that PEFT has read, named where PEFT does not find what is in the file."""
    held, wanted = saved_files.names(path), names_of(peft, passage.arrived)
    if wanted <= held or not passage.lost():
        return found
    found.diagnosis = SOME_NAMES
    if not wanted & held:
        off = is_the_bases(passage.outputs(passage.arrived)[0], passage.case)
        found.diagnosis = ANSWERS_AS_THE_BASE if off else NO_NAME
    return found.with_note(f"PEFT reads {_shown(wanted)}, the file has {_shown(held - wanted or held)}")


def _shown(names: set[str]) -> str:
    return shortened(listed(sorted(names)), NAMED) or "none"


def names_of(peft: Implementation, layer: Layer) -> set[str]:
    """What PEFT calls an adapter's tensors in a file."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        peft.save(layer.adapted, Path(folder) / "peft")
        return saved_files.names(Path(folder) / "peft")


def on_the_audits_model(path: Path, wanted: set[str], to: Path) -> Path:
    """The checkpoint, or a copy of it in which the one layer is called what it is called in the audit's model.

    What another model calls its layer is the subject file's choice and decides nothing.
    """
    ends = tuple(name.removeprefix(PLACE) for name in wanted)
    places = {_place(name, ends) for name in saved_files.names(path)}
    place = next(iter(places)) if len(places) == 1 else None
    if place is None or place == PLACE or not place.startswith(PLACE.removesuffix(".layer")):
        return path
    shutil.copytree(path, to)
    for file in saved_files.with_tensors(to):
        saved_files.rewrite(file, lambda held: {PLACE + n.removeprefix(place): t for n, t in held.items()})
    _name_the_layer(to / "adapter_config.json")
    return to


def _place(name: str, ends: tuple[str, ...]) -> str | None:
    """The layer that a name is of, where it ends as one of PEFT's."""
    end = next((e for e in ends if name.endswith(e)), None)
    return None if end is None else name.removesuffix(end)


def _name_the_layer(file: Path) -> None:
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    told |= {field: [PLACE.rpartition(".")[2]] for field in LAYERS_IN if told.get(field)}
    file.write_text(json.dumps(told), encoding="utf-8")

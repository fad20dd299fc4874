"""How a check says that something is not as the reference has it, or that it cannot tell."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from harness.cases.layer_cases import Case
from reports.model import Diagnosis, Witness


class Described(Protocol):
    """Whatever a claim is tried on, in plain values: a layer's case or a whole model's."""

    def describe(self) -> dict[str, Any]: ...


class Deviation(Exception):
    """The subject differs from the oracle at a case.

    ``ratio`` and ``threshold`` as in DESIGN §9, where measured; ``diagnosis`` where the check itself knows it.
    """

    def __init__(
        self,
        case: Described | None,
        quantity: str,
        expected: str,
        actual: str,
        *,
        ratio: float | None = None,
        threshold: float | None = None,
        note: str = "",
        diagnosis: Diagnosis | None = None,
    ) -> None:
        self.case = case if isinstance(case, Case) else None  # what the mistakes catalogue can be tried on
        self.ratio, self.threshold, self.diagnosis = ratio, threshold, diagnosis
        self.witness = Witness(case.describe() if case else {}, quantity, expected, actual, note)
        super().__init__(f"{quantity}: expected {expected}, got {actual}" + (f" ({note})" if note else ""))

    def with_note(self, note: str) -> Deviation:
        """This deviation with something to add, unless ``note`` is empty."""
        if note:
            self.witness = dataclasses.replace(self.witness, note=note)
            self.args = (f"{self.args[0]} ({note})",)
        return self


class Unverified(Exception):
    """The question cannot be answered, and why; never a pass."""


class NotApplicable(Exception):
    """The question does not arise, and why; counted and shown."""

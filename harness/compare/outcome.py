"""How a check says that something is not as the reference has it, or that it cannot tell."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Protocol

from harness.cases.layer_cases import Case
from refs.vocabulary import Cause
from reports.model import Diagnosis, Witness


class Described(Protocol):
    """Whatever a claim is tried on, in plain values: a layer's case or a whole model's."""

    def describe(self) -> dict[str, Any]: ...


class Deviation(Exception):
    """The subject differs from the oracle at a case.

    ``ratio`` and ``threshold`` as in DESIGN §9, where measured; ``diagnosis`` where the check itself knows it.
    ``shared``: the oracle breaks the rule likewise, so that it agrees with the subject. ``alone``: what other checks
    find wrong is not why. ``otherwise``: what is told where no catalogued mistake explains it.
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
        shared: bool = False,
        alone: bool = False,
        otherwise: Diagnosis | None = None,
    ) -> None:
        self.shared, self.alone = shared, alone
        self.case = case if isinstance(case, Case) else None  # what the mistakes catalogue can be tried on
        self.ratio, self.threshold, self.diagnosis = ratio, threshold, diagnosis
        self.otherwise = otherwise
        self.witness = Witness(case.describe() if case else {}, quantity, expected, actual, note)
        super().__init__(f"{quantity}: expected {expected}, got {actual}" + (f" ({note})" if note else ""))

    def with_note(self, note: str) -> Deviation:
        """This deviation with something to add, unless ``note`` is empty."""
        if note:
            self.witness = dataclasses.replace(self.witness, note=note)
            self.args = (f"{self.args[0]} ({note})",)
        return self


class NotTold(Exception):
    """Nothing was compared: why in a sentence, for a program in ``cause``, and about what in ``detail``."""

    cause: Cause

    def __init__(self, why: object, detail: str | None = None) -> None:
        self.detail = detail
        super().__init__(str(why))


class Unverified(NotTold):
    """The question cannot be answered, and why; never a pass."""

    cause: Cause = "oracle_silent"


class OracleRefused(Unverified):
    """The oracle itself raised, or has no finite answer."""

    cause: Cause = "oracle_refused"


class NoSlot(Unverified):
    """The subject lacks a canonical tensor, named in ``detail``, so that the point cannot be set."""

    cause: Cause = "no_slot"


class OtherLayout(NoSlot):
    """The subject has the tensor in a shape whose meaning is not known; ``shapes``: the canonical one and its own."""

    def __init__(self, case: Described, name: str, on: str, shapes: tuple[object, object]) -> None:
        self.witness = Witness(case.describe(), f"shape of {name}", str(shapes[0]), str(shapes[1]))
        super().__init__(f"the subject's {name} on {on} has another shape", name)


class NotApplicable(NotTold):
    """The question does not arise, and why; counted and shown."""

    cause: Cause = "outside"


class OutsideDomain(NotApplicable):
    """The question does not arise here for any implementation."""


class ModeMissing(NotApplicable):
    """The subject lacks an option, mode or dtype that the references have; ``detail`` names it.

    ``aspect``: what it is about, where that is not what the check is about.
    """

    cause: Cause = "mode_missing"

    def __init__(self, why: object, detail: str | None = None, aspect: str | None = None) -> None:
        super().__init__(why, detail)
        self.aspect = aspect


class NotOffered(NotApplicable):
    """The subject lacks an optional method; ``detail`` names it."""

    cause: Cause = "not_offered"


class ToldElsewhere(NotApplicable):
    """Another check, named in ``detail``, reports it."""

    cause: Cause = "told_elsewhere"


class ReferencesDisagree(NotApplicable):
    """The oracle is catalogued, under the id in ``detail``, to differ from the reference of record."""

    cause: Cause = "references_disagree"


def without_numbers(words: object) -> str:
    """``words`` with a # for every number: what two complaints of one kind have in common."""
    return re.sub(r"\d+", "#", str(words))

"""A deviation on its way into a claim's record: its case, what explains it, who agrees, where it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from harness.cases.kind_cases import OPTIONS, WORDS, KindCase
from harness.cases.layer_cases import Case
from harness.compare import isolation
from harness.compare.context import Context, Worst
from harness.compare.ear import heard
from harness.compare.kinds import plain_ones_answer
from harness.compare.layer import SubjectRaised
from harness.compare.outcome import Deviation
from harness.engine import diagnosis
from harness.engine.checks import Check
from harness.engine.regime import regime
from oracles.oracle import Oracle
from reports.model import ALONE, OF_DTYPES, Diagnosis, Witness

MISBEHAVES = (SubjectRaised, *isolation.MISBEHAVES)


def _detail(found: Deviation) -> str | None:
    if found.witness.quantity.startswith("dtype of"):
        return OF_DTYPES
    return ALONE if found.alone else None


@dataclass(frozen=True)
class Failure:
    """One check that failed against one oracle; ``others``: the further oracles that can be asked about its case."""

    check: Check
    context: Context
    oracle_id: str
    others: Mapping[str, Oracle]

    def told(self, found: Deviation, replay: str) -> dict[str, object]:
        """The fields of the claim that fails."""
        known, where, trouble = self._explained(found)
        explained = bool(known)
        known = known or ((found.otherwise,) if found.otherwise else ())
        known = tuple(_named(entry, found.case) for entry in known)
        witness = dataclasses.replace(found.witness, replay=replay, heard=heard(self.context.subject.name))
        witness = _noted(witness, trouble)
        if found.case is not None:
            witness = self._placed(witness, found.case, where, explained, found.shared)
        return {
            "outcome": "fail",
            "ratio": found.ratio,
            "threshold": found.threshold,
            "witness": witness,
            "diagnosis": known[0] if known else None,
            "further": known[1:],
            "reason": str(found),
            "detail": _detail(found),
        }

    def _explained(self, found: Deviation) -> tuple[tuple[Diagnosis, ...], str, str]:
        """What the check says itself, or the catalogue's explanation; else where the failure begins; trouble.

        A subject that misbehaves when it is asked again is not explained. A mistake in the diagnosis takes nothing
        back of the difference that was found: it is told beside it.
        """
        if found.diagnosis or found.case is None:
            return (found.diagnosis,) if found.diagnosis else (), "", ""
        asked = (self.check, self.context, found.case)
        try:
            with isolation.global_state(self.context.subject), isolation.time_limit(self.context.subject):
                known: tuple[Diagnosis, ...] = ()
                if self.check.diagnose:
                    known = diagnosis.diagnose(*asked) or diagnosis.coarse(*asked)
                where = "" if known else regime(found.case, self._holds)
                if where and self.check.diagnose:
                    known = diagnosis.in_a_regime(*asked, where)
                return known, where, ""
        except MISBEHAVES:
            return (), "", ""
        except Exception as error:
            return (), "", _trouble(error)

    def _placed(self, witness: Witness, case: Case, where: str, explained: bool, shared: bool) -> Witness:
        """The witness with who agrees on its case and, where nothing explains it, what else is and is not right."""
        notes: list[str] = []
        try:
            with isolation.global_state(self.context.subject), isolation.time_limit(self.context.subject):
                agree, differ, not_asked = self._standing(case, shared)
                if not explained:
                    notes += [where, self._facts(case)]
        except MISBEHAVES:
            return witness
        except Exception as error:
            return _noted(witness, *notes, _trouble(error))
        told = dataclasses.replace(witness, agree=agree, differ=differ, not_asked=not_asked)
        return _noted(told, *notes)

    def _holds(self, case: Case) -> bool:
        return diagnosis.holds(self.check, dataclasses.replace(self.context, worst=Worst()), case)

    def where_raised(self, error: SubjectRaised, case: object) -> str:
        """The exception in words, with the kind of layer and the settings that it takes."""
        subject, on, only = self.context.subject, "", ""
        if isinstance(case, Case):
            with suppress(Exception), isolation.global_state(subject), isolation.time_limit(subject):
                on = f"on {self._layer(case)}, " if isinstance(case, KindCase) else ""
                only = regime(case, self._holds) or self._regime_of_a_larger(case)
        return f"{on}{error}" + (f", {only}" if only else "")

    def _layer(self, case: KindCase) -> str:
        """The case's kind in words, with its options where the plain layers of the kind are answered."""
        named = case.is_plain or (
            plain_ones_answer(self.context, case) and self._answers_without_options(case)
        )
        return case.words if named else WORDS[case.kind]

    def _answers_without_options(self, case: KindCase) -> bool:
        """Whether the very layer is answered where it has none of its options."""
        return self._holds(dataclasses.replace(case, **OPTIONS))

    def _regime_of_a_larger(self, case: Case) -> str:
        """Where the failure begins on a layer that has room for other ranks, if that one fails as well."""
        if isinstance(case, KindCase):
            return ""
        larger = case.but(in_features=max(case.in_features, 7), out_features=max(case.out_features, 6))
        return "" if self._holds(larger) else regime(larger, self._holds, case)

    def _facts(self, case: Case) -> str:
        """What of the subject equals the reference and what does not, on ordinary cases."""
        if not self.check.diagnose:
            return ""
        return diagnosis.explanation_at(self.context.subject, self.context.variant, case).words

    def _standing(self, case: Case, shared: bool) -> tuple[tuple[str, ...], ...]:
        """(agree, differ, not asked): every oracle of the check, on the failing case itself."""
        said = {id_: self._says(oracle, case) for id_, oracle in self.others.items()}
        said[self.oracle_id] = shared
        sides: tuple[list[str], list[str], list[str]] = ([], [], [])
        for id_, agrees in said.items():
            sides[2 if agrees is None else 0 if agrees else 1].append(id_)
        return tuple(sides[0]), tuple(sides[1]), tuple(sides[2])

    def _says(self, oracle: Oracle, case: Case) -> bool | None:
        """Whether the subject agrees with another oracle there; None where that one cannot be asked."""
        context = dataclasses.replace(self.context, oracle=oracle, worst=Worst(), left_out="")
        try:
            self.check.function(context, case)
        except Deviation:
            return False
        except Exception:  # refused, not recorded, not offered, or a mistake of its own: it says nothing
            return None
        return True


def _named(entry: Diagnosis, case: Case | None) -> Diagnosis:
    """With the name of the kind of layer that the case is about, where the entry speaks of "this kind"."""
    if not isinstance(case, KindCase):
        return entry
    return dataclasses.replace(
        entry,
        summary=case.named(entry.summary),
        failure_mode=case.named(entry.failure_mode),
        remedy=case.named(entry.remedy),
    )


def _noted(witness: Witness, *notes: str) -> Witness:
    """The witness with further notes behind its own; empty ones are left out."""
    return dataclasses.replace(witness, note="; ".join(n for n in (witness.note, *notes) if n))


def _trouble(error: Exception) -> str:
    return f"the audit's own explanation failed here ({type(error).__name__}: {error}): please report it"

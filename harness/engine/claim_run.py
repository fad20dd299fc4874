"""One claim: a check asked of the subject against one oracle, run over its cases and concluded in a record."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import SkipTest

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis.errors import Flaky, Unsatisfiable, UnsatisfiedAssumption

from harness import clock
from harness.cases import example_database, own_draws
from harness.cases.layer_cases import Case, Domain
from harness.cases.life_cases import LifeCase
from harness.cases.profiles import Profile
from harness.cases.recorded_cases import Recorded, cases_of
from harness.cases.regimes import regimes, square
from harness.compare import ear, isolation
from harness.compare.blame import lies_elsewhere
from harness.compare.context import Context, Refused, Worst
from harness.compare.dtypes_apart import dtypes_apart
from harness.compare.ear import heard
from harness.compare.layer import BadAnswer, SubjectRaised, WrongType
from harness.compare.offered import adapts_linear
from harness.compare.outcome import (
    Deviation,
    ModeMissing,
    NotApplicable,
    NotOffered,
    NotTold,
    OtherLayout,
    OutsideDomain,
    ReferencesDisagree,
    ToldElsewhere,
    Unverified,
    without_numbers,
)
from harness.engine import asked_again
from harness.engine.checks import EXAMPLES, Check
from harness.engine.failure import Failure
from harness.engine.preflight import Broken
from harness.engine.shrinking import fewer_steps, shrunk
from oracles import disagreements
from oracles.implementation import Implementation, Unsupported
from oracles.oracle import NotRecorded, Oracle
from oracles.variants import Variant
from refs.vocabulary import Cause
from reports.judge.grouping import covering
from reports.model import Claim, Declaration, Key, Witness
from reports.text import one_line

QUIET = [
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
]


# Cases without an answer before a claim is given up: a whole method that is not there shows soon, a restriction on
# the spec (no bias, even ranks only) leaves some of the cases.
PATIENCE_WITH_METHOD, PATIENCE_WITH_SPEC = 6, 40
own_draws.ignore_local_constants()


# What a library does that is no answer and no exception of its own.
MISBEHAVIOUR: dict[type[BaseException], Cause] = {
    BadAnswer: "bad_answer",
    isolation.StateChanged: "state_changed",
    isolation.ClaimTimeout: "hangs",
    isolation.SubjectDied: "died",
}

# Aspects that a library can be asked about which makes no fresh adapters.
OF_FILES = ("checkpoints",)
# A recording is of one residual, to the last bit.
NO_RESIDUAL = "recorded at a residual, of which the subject keeps no tensor"


class Enough(SkipTest):
    """Ends the asking: the one kind of exception that Hypothesis passes on at once, without trying to shrink it."""


class Unsteady(Exception):
    """A large case that failed, and did not fail when it was asked again."""


@dataclass
class ClaimRun:
    """A claim before and while it is asked."""

    check: Check
    variant: Variant
    oracle_id: str
    mode: str | None
    subject: Implementation
    oracle: Oracle
    profile: Profile
    declarations: tuple[Declaration, ...]
    broken_wrapper: Callable[[str], Broken | None]
    record: Callable[[Claim], None]
    ref: str = "lora_lite"
    others: Callable[[], Mapping[str, Oracle]] = dict
    python: str | None = None
    last: Any = field(default=None, init=False)  # the case that was asked last
    last_given: Any = field(
        default=None, init=False
    )  # the one that it was made of, or that could not be asked
    answered: int = field(default=0, init=False)
    not_offered: list[NotApplicable] = field(default_factory=list, init=False)

    @property
    def key(self) -> Key:
        """Which claim this is."""
        return Key(self.check.id, self.variant.id, self.mode, self.oracle_id)

    @property
    def id(self) -> str:
        """The claim's id."""
        return self.key.id

    def run(self) -> None:
        """Ask, record the claim, and end the pytest test accordingly."""
        __tracebackhide__ = True
        claim = self.conclude()
        self.record(claim)
        if claim.outcome in ("fail", "unverified", "error"):
            pytest.fail(message(claim), pytrace=False)
        if claim.outcome == "not_applicable":
            of = "not offered: " if claim.cause == "not_offered" else ""
            pytest.skip(f"{of}{claim.reason or ''}")

    def conclude(self) -> Claim:
        """The claim's record; whatever the subject does, this returns one."""
        context = Context(self.subject, self.oracle, self.variant)
        claim = Claim(
            self.id, self.variant.id, self.check.info.aspect, self.check.id, self.oracle_id, "pass",
            examples=self.examples, mode=self.mode,
        )  # fmt: skip
        changes = self._outcome(context)
        if changes["outcome"] == "pass":
            changes |= {"ratio": context.worst.ratio, "threshold": context.worst.threshold}
            if self.known:
                reason = f"the references disagree here ({self.known.id}): the subject agrees with this one"
                changes |= {"reason": reason, "cause": "references_disagree", "detail": self.known.id}
        if changes.get("reason"):
            changes["reason"] = one_line(str(changes["reason"]))
        claim = dataclasses.replace(claim, **changes)  # type: ignore[arg-type]
        return self._as_declared(claim)

    @property
    def replay(self) -> str:
        """The command that asks this claim alone, on the same cases: they follow from its id and the seed."""
        where = f"{self.check.function.__module__.replace('.', '/')}.py::{self.check.function.__name__}"
        # With the equals sign: pytest takes a path that stands alone for a test to collect.
        python = f" --subject-python={shlex.quote(self.python)}" if self.python else ""
        options = f"--subject {shlex.quote(self.ref)}{python} --audit-profile {self.profile.name}"
        seed = f" --hypothesis-seed {self.profile.seed}" if self.profile.seed else ""
        return f"{asked_again.command()} {shlex.quote(f'{where}[{self.key.label}]')} {options}{seed}"

    @property
    def examples(self) -> int:
        """How many cases the claim is tried on."""
        fixed = self.check.examples
        if fixed == EXAMPLES:
            return self.profile.examples
        capped = self.profile.caps and not self.check.whole
        return min(fixed, self.profile.examples // 2) if capped else fixed

    def _outcome(self, context: Context) -> dict[str, object]:
        ear.about(self.variant.id)
        broken = self.broken_wrapper(self.variant.id)
        if broken and not (broken.cause == "no_variant" and self._needs_no_linear_layer()):
            why = _because(broken.cause, broken.sentence)
            return {"outcome": broken.outcome, "examples": 0, **why}
        try:
            with isolation.global_state(self.subject), isolation.time_limit(self.subject):
                asked = self._drive(context)
        except Deviation as found:
            failure = Failure(self.check, context, self.oracle_id, self.others())
            return self._excused() or failure.told(found, self.replay)
        except Unverified as why:
            seen = why.witness if isinstance(why, OtherLayout) else None
            return self._excused() or {"outcome": "unverified", "witness": seen, **_told(why)}
        except ModeMissing as why:
            about = {"aspect": why.aspect} if why.aspect else {}
            return {"outcome": "not_applicable", "examples": 0, **_told(why), **about}
        except NotApplicable as why:
            return {"outcome": "not_applicable", "examples": 0, **_told(why)}
        except NotRecorded as why:
            if self._keeps_no_base(context):
                return {"outcome": "not_applicable", "examples": 0, **_because("outside", NO_RESIDUAL)}
            return {"outcome": "unverified", "examples": 0, **_because("oracle_silent", why)}
        except Unsupported as why:
            return {"outcome": "not_applicable", "examples": 0, **_because("not_offered", why)}
        except SubjectRaised as error:
            return self._raised(error, context)
        except WrongType as error:
            where, kind = self._where(str(error)), without_numbers(error)
            if lies_elsewhere(self.subject):  # else the file is the library's own
                return self._of_the_wrapper(str(error), kind, where)
            return {"outcome": "error", "witness": where, **_because("bad_answer", error, kind)}
        except tuple(MISBEHAVIOUR) as error:
            if getattr(error, "who", None) not in (None, self.subject.name):
                silent = _because("oracle_refused", error, without_numbers(error))
                return {"outcome": "unverified", **silent}
            told = _because(MISBEHAVIOUR[type(error)], error, without_numbers(error))
            return {"outcome": "error", "witness": self._where(str(error)), **told}
        except (Flaky, Unsteady):
            reason = f"{self.subject.name} answers differently to the same call"
            return {"outcome": "error", **_because("unsteady", reason)}
        except Unsatisfiable:
            return self._unanswered(context)
        except Exception as error:  # the audit's own mistake must not be laid at the subject's door
            name = type(error).__name__
            reason = f"the audit itself failed: {name}: {error}"
            return {"outcome": "unverified", **_because("audit_failed", reason, name)}
        return {"outcome": "pass", "examples": asked}

    def _needs_no_linear_layer(self) -> bool:
        """Whether the question is of a loaded checkpoint and the subject loads some, or of the kinds it adapts."""
        if self.check.info.aspect == "layers":
            return not adapts_linear(self.subject)
        loads = type(self.subject).load_peft is not Implementation.load_peft
        return self.check.info.aspect in OF_FILES and loads

    def _keeps_no_base(self, context: Context) -> bool:
        """Whether the method takes a part out of the base weight, and the subject holds nothing of what is left."""
        case, base = context.abilities.ordinary, self.variant.base
        if base is None or case is None:
            return False
        with suppress(Exception):
            return base.name not in context.layer(case).names
        return False

    def _raised(self, error: SubjectRaised, context: Context) -> dict[str, object]:
        """Of a claim that ended in an exception: whose it is decides."""
        if error.who != self.subject.name:  # the oracle, which the subject cannot be blamed for
            return {"outcome": "unverified", **_because("oracle_refused", error)}
        witness = self._where(str(error), error.case)
        if error.is_of_the_wrapper:
            return self._of_the_wrapper(str(error), error.kind, witness)
        case = error.case or self.last
        told = dtypes_apart(context, error, case)
        failure = Failure(self.check, context, self.oracle_id, {})
        where = str(error) if told else failure.where_raised(error, case)
        return {
            "outcome": "error",
            "witness": witness,
            "diagnosis": told,
            **_because("raised", where, error.kind),
        }

    @staticmethod
    def _of_the_wrapper(said: str, kind: str | None, witness: Witness | None) -> dict[str, object]:
        reason = f"the subject file, not the library behind it: {said}"
        return {"outcome": "unverified", "witness": witness, **_because("wrapper", reason, kind)}

    def _where(self, what: str, tried: Any = None) -> Witness | None:
        """The case that was asked last, to which Hypothesis has shrunk a crash; or what a check ``tried`` instead."""
        asked = tried or self.last
        if asked is None:
            return None
        case, said = asked.describe(), heard(self.subject.name)
        return Witness(case, "the answer", "an answer", what, replay=self.replay, heard=said)

    def _unanswered(self, context: Context) -> dict[str, object]:
        """Of a claim without a single case that could be asked."""
        if self.not_offered:
            return {"outcome": "not_applicable", "examples": 0, **_told(self.not_offered[0])}
        if isinstance(self.last_given, Recorded) and self.last is None:
            why = "no recorded case is one that the subject takes as it is"
            return {"outcome": "not_applicable", "examples": 0, **_because("outside", why)}
        if context.left_out:
            return {"outcome": "not_applicable", "examples": 0, **_because("outside", context.left_out)}
        return {
            "outcome": "unverified",
            **_because("refused_all", "none of the cases was answered: the subject refused, or raised"),
        }

    @property
    def known(self) -> disagreements.Disagreement | None:
        """The catalogued disagreement of this oracle with the reference of record, if this check shows one."""
        return disagreements.explaining(self.check.id, self.variant.id, self.oracle_id)

    def _excused(self) -> dict[str, object] | None:
        """A subject that differs where the references do is judged against the reference of record alone."""
        if self.known is None:
            return None
        reason = f"the references disagree here ({self.known.id}): judged against {self.known.of_record}"
        return {
            "outcome": "not_applicable",
            "examples": 0,
            **_told(ReferencesDisagree(reason, self.known.id)),
        }

    def _drive(self, context: Context) -> int:
        """Ask the check on its cases; how many there were."""
        # Without the oracle: all references are asked about the same cases, so that agreeing with one of them
        # is never an accident of what was drawn.
        question = f"{self.profile.seed}:{self.check.id}[{self.variant.id}-{self.mode}"
        number = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")
        taken = tuple(d for d in self.check.domain.dtypes if d in context.abilities.dtypes)
        if not taken:
            raise ToldElsewhere("none of the dtypes asked about is taken: see dtype.taken", "dtype.taken")
        domain = dataclasses.replace(
            self.check.domain, mode=self.mode or self.check.domain.mode, dtypes=taken
        )
        offered, count = cases_of(self.oracle, self.check.info, self.variant, domain)
        asked = count or self.examples

        @self._settings(asked)
        @hypothesis_seed(number)  # below the settings: it would take the database away
        @given(case=offered)
        def example(case: Case) -> None:
            self._ask_one(context, case)

        try:
            with clock.charge("hypothesis"):
                example()
        except Deviation as found:
            raise self._shortened(context, found) from None
        except Enough:
            raise self.not_offered[0] from None
        asked += self._ask_regimes(context, domain, count is None)
        if self.check.may_refuse:
            return self.answered
        if len(self.not_offered) > self.answered:
            first = self.not_offered[0]
            if isinstance(first, (ToldElsewhere, OutsideDomain)):
                raise first
            # In the same words as where it is asked about alone: one mode is told once.
            raise ModeMissing(first, first.detail or self.mode)
        return asked

    def _ask_regimes(self, context: Context, domain: Domain, live: bool) -> int:
        """Ask a claim on numbers at the sizes and values where real code changes its way; how many there were."""
        if not live or self.known:
            return 0
        there: list[Case] = []
        if self.check.examples == EXAMPLES:
            there = list(regimes(self.variant, domain, self.profile.caps))
        elif domain.square:
            there = list(square(self.variant, domain))
        for case in there:
            nearest = dataclasses.replace(case, spec=self.oracle.nearest(case.spec))
            with suppress(UnsatisfiedAssumption):
                self._ask_large(context, nearest)
        return len(there)

    def _ask_large(self, context: Context, case: Case) -> None:
        """Ask one such case, and make it small again if it fails."""
        try:
            self._ask_one(context, case)
        except Deviation as found:
            fails = partial(self._deviates, context)
            if not fails(found.case or case):
                raise Unsteady from None
            smallest = shrunk(found.case or case, fails)
            self._ask_one(dataclasses.replace(context, worst=Worst()), smallest)
            raise

    def _shortened(self, context: Context, found: Deviation) -> Deviation:
        """The deviation of a life after as few steps as bring about the same one."""
        last = found

        def fails(case: LifeCase) -> bool:
            nonlocal last
            other = self._deviation(context, case)
            if other is None or other.diagnosis != found.diagnosis or other.alone != found.alone:
                return False
            last = other
            return True

        if isinstance(found.case, LifeCase):
            fewer_steps(found.case, fails)
        return last

    def _deviates(self, context: Context, case: Case) -> bool:
        return self._deviation(context, case) is not None

    def _deviation(self, context: Context, case: Case) -> Deviation | None:
        """How the claim fails on a case, if it does."""
        try:
            self._ask_one(dataclasses.replace(context, worst=Worst()), case)
        except Deviation as found:
            return found
        except (UnsatisfiedAssumption, Unverified, SubjectRaised, BadAnswer, ValueError, RuntimeError):
            return None
        return None

    def _settings(self, asked: int) -> settings:
        return settings(
            max_examples=asked,
            deadline=None,
            database=example_database.database(self.id),
            phases=(*example_database.phases(), Phase.generate, *(() if self.known else (Phase.shrink,))),
            suppress_health_check=QUIET,
            report_multiple_bugs=False,
        )

    def _ask_one(self, context: Context, case: Case) -> None:
        self.last_given = case
        fitted = context.abilities.fitted(case)
        assume(
            fitted is case or not isinstance(case, Recorded)
        )  # what was recorded cannot be asked otherwise
        if lost := self._lost(case, fitted):
            self._pass_over(lost)
        case = self.last = fitted
        try:
            with clock.charge("checks"):
                self.check.function(context, case)
            self.answered += 1
        except Refused:
            assume(False)
        except NotRecorded:
            raise
        except (Unsupported, NotApplicable) as why:
            self._pass_over(why)

    def _lost(self, case: Case, fitted: Case) -> NotApplicable | None:
        """Why the question cannot be asked of the nearest spec that the subject can express; None where it can."""
        if self.mode and not getattr(fitted.spec, self.mode):
            why = f"{self.subject.name} has no {self.mode}: the nearest spec that it can express is without"
            return ModeMissing(why, self.mode) if self.check.id == "shapes.modes" else NotOffered(why)
        if self.check.info.aspect == "dropout" and case.spec.dropout > 0 == fitted.spec.dropout:
            return NotOffered(f"not offered: dropout: {self.subject.name} has none", "dropout")
        return None

    def _pass_over(self, why: Unsupported | NotApplicable) -> None:
        """Leave one case out; Enough where so many have been that none is going to be answered."""
        self.not_offered.append(why if isinstance(why, NotApplicable) else NotOffered(why))
        patience = PATIENCE_WITH_METHOD if isinstance(why, NotApplicable) else PATIENCE_WITH_SPEC
        if not self.answered and len(self.not_offered) >= patience:
            raise Enough(str(why))
        assume(False)

    def _as_declared(self, claim: Claim) -> Claim:
        if claim.outcome not in ("fail", "error"):
            return claim
        declared = covering(self.declarations, claim)
        return dataclasses.replace(claim, outcome="declared", reason=declared.reason) if declared else claim


def _because(cause: Cause, why: object, detail: str | None = None) -> dict[str, object]:
    """Why there is no answer, in a sentence and in fields."""
    return {"reason": str(why), "cause": cause, "detail": detail}


def _told(why: NotTold) -> dict[str, object]:
    return _because(why.cause, why, why.detail)


def message(claim: Claim) -> str:
    """What pytest prints for a claim that does not hold: the question's id, the case, both values, the diagnosis."""
    lines = [f"{claim.id}: {claim.outcome}: {claim.reason}"]
    if claim.witness:
        case = ", ".join(f"{k} {v}" for k, v in claim.witness.case.items())
        lines.append(f"  smallest case: {case}")
    if claim.ratio is not None and claim.threshold is not None:
        lines.append(f"  ratio {claim.ratio:.3g}, threshold {claim.threshold:g}")
    if claim.witness and claim.witness.replay:
        lines.append(f"  replay: {claim.witness.replay}")
    if claim.diagnosis:
        lines.append(f"  equals {claim.diagnosis.mistake}: {claim.diagnosis.summary}")
    return "\n".join(lines)

"""The check catalogue: what a check asks, of which variants, against which oracles, and how bad its failure is."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.cases.layer_cases import DTYPES, Domain
from oracles import registry
from oracles.variants import VARIANTS, Variant
from refs.vocabulary import ASPECTS, SEVERITIES, Severity
from reports.model import CheckInfo

QUESTIONS = Path(__file__).parents[1]
EXAMPLES = -1  # as many as the profile says


@dataclass(frozen=True)
class Check:
    """A registered check. ``examples``: EXAMPLES, or a fixed number where more would ask nothing new."""

    info: CheckInfo
    function: Callable[..., None]
    domain: Domain
    against: tuple[str, ...] | None
    applies: Callable[[Variant], bool]
    examples: int
    modes: bool
    diagnose: bool
    may_refuse: bool = False
    whole: bool = False

    @property
    def id(self) -> str:
        return self.info.id


class BadCheck(Exception):
    """A check that is registered with something that does not exist; the text is one sentence."""


class Runnable(Protocol):
    """A claim that can be asked."""

    def run(self) -> None: ...


CHECKS: dict[str, Check] = {}


@functools.cache
def load_checks() -> dict[str, Check]:
    """Every check, by importing the test modules; in file order. Raises BadCheck."""
    for file in sorted(QUESTIONS.glob("test_*.py")):
        importlib.import_module(f"harness.{file.stem}")
    validate(CHECKS)
    return CHECKS


def validate(checks: Mapping[str, Check]) -> None:
    """Whether every name that a check is registered with exists: a mistyped one would make it vanish unnoticed.

    Raises BadCheck, which names the check and what is wrong with it.
    """
    for entry in checks.values():
        info = entry.info
        _known(info, "aspect", [info.aspect], ASPECTS)
        _known(info, "severity", [info.severity], SEVERITIES)
        _known(info, "dtypes", entry.domain.dtypes, DTYPES)
        _known(info, "follows", info.follows, [id_ for id_ in checks if id_ != info.id])
        if entry.against is not None:
            _known(info, "against", entry.against, registry.ids())
        if entry.against == () or not any(map(entry.applies, VARIANTS.values())):
            nobody = "of no oracle" if entry.against == () else "of no variant"
            raise BadCheck(f"check {info.id} is asked {nobody}")


def _known(info: CheckInfo, what: str, given: Iterable[str], expected: Iterable[str]) -> None:
    known = list(expected)
    for name in given:
        if name not in known:
            wanted = "another check's id" if what == "follows" else f"one of {', '.join(known)}"
            raise BadCheck(f"check {info.id} has {what} {name!r}, expected {wanted}")


def check(
    aspect: str,
    severity: Severity,
    *,
    title: str,
    failure_mode: str,
    domain: Domain | None = None,
    against: tuple[str, ...] | None = None,
    applies: Callable[[Variant], bool] = lambda variant: True,
    examples: int = EXAMPLES,
    follows: tuple[str, ...] = (),
    modes: bool = False,
    diagnose: bool = True,
    may_refuse: bool = False,
    whole: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``test_name(context, case)`` as the check ``aspect.name``; pytest then runs it once per claim.

    ``against``: the oracles it can be asked of (None: every one that is there); ("paper",) marks what follows from
    the equation being a function of its inputs. ``modes``: asked once per mode of the variant. ``diagnose``:
    whether the mistakes catalogue is searched for what explains a failure. ``may_refuse``: most cases are options that
    a library need not have; to refuse them openly is no missing mode. ``whole``: its few cases are each another
    question, and cheap, so that a profile that caps fixed numbers asks them all.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        id_ = f"{aspect}.{function.__name__.removeprefix('test_')}"
        question = inspect.getdoc(function) or ""
        after = (*follows, *_unseen_with_gradients(id_, aspect))
        info = CheckInfo(id_, aspect, severity, question.split("\n\n")[0], title, failure_mode, after)
        entry = Check(
            info,
            function,
            domain or Domain(),
            against,
            applies,
            examples,
            modes,
            diagnose,
            may_refuse,
            whole,
        )
        if id_ in CHECKS:
            raise BadCheck(f"check {id_} is registered twice: the second would take the first one's place")
        CHECKS[id_] = entry
        return _as_test(function, entry)

    return register


# Where a layer computes another function without gradients, what is measured without them shows that one.
NO_GRAD = "contexts.no_grad"
MEASURED_WITHOUT_GRADIENTS = {"forward", "merge", "lifecycle", "layers", "dropout", "dtype"}
MEASURED_WITH_GRADIENTS = {"forward.random_parameters", "forward.gradients", "forward.input_gradient"}


def _unseen_with_gradients(id_: str, aspect: str) -> tuple[str, ...]:
    measured = aspect in MEASURED_WITHOUT_GRADIENTS and id_ not in MEASURED_WITH_GRADIENTS
    return (NO_GRAD,) if measured else ()


def _as_test(function: Callable[..., None], entry: Check) -> Callable[..., None]:
    @functools.wraps(function)
    def test(claim: Runnable) -> None:
        __tracebackhide__ = True
        claim.run()

    # pytest reads the signature: the check's own (context, case) is the claim's to fill.
    test.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("claim", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )
    test.audit_check = entry  # type: ignore[attr-defined]
    vars(test).pop("__wrapped__", None)
    return test

"""A failing claim explained: the catalogued mistake that, put in the oracle's place, the subject agrees with."""

from __future__ import annotations

import dataclasses

from harness.cases.layer_cases import Case
from harness.compare.context import Context, Worst
from harness.engine.checks import CHECKS, Check
from oracles.equation import Equation
from oracles.implementation import Implementation
from oracles.mistakes import Mistake, mistaken, mistakes_of
from oracles.oracle import Oracle
from reports.model import Diagnosis

# Small enough to be quick, large enough that few mistakes coincide: distinct sizes, even rank, α ≠ r.
GENERIC = (
    {"in_features": 6, "out_features": 5, "rank": 4, "alpha": 3.0, "batch": (5,), "seed": 1},
    {"in_features": 4, "out_features": 7, "rank": 2, "alpha": 8.0, "batch": (3,), "seed": 2},
)
# Where several mistakes explain a claim, these tell them apart: a mistake is a whole implementation.
BATTERY = (
    "init.deterministic",
    "init.principal",
    "init.pairs",
    "step0.dead_parameters",
    "forward.random_parameters",
    "forward.gradients",
    "dropout.placement",
    "dropout.off_in_eval",
    "dropout.expectation",
)

# Facts of an implementation by itself: here subject and mistake agree when both hold or both fail.
OWN_FACTS = ("init.identity", "init.residual")


def diagnose(check: Check, context: Context, failing: Case) -> Diagnosis | None:
    """The mistake whose values equal the subject's at the failing case and two more; None if none does.

    It must fail the check itself, against the same oracle, where the subject does: otherwise it explains nothing.
    """
    tried = [failing, *others(failing)]
    explaining = [m for m in mistakes_of(context.variant.id) if _explains(m, check, context, tried)]
    if not explaining:
        return None
    best = (
        max(explaining, key=lambda m: _agreement(m, context, failing))
        if len(explaining) > 1
        else explaining[0]
    )
    return described(best, len(tried))


def others(failing: Case) -> list[Case]:
    """Two more cases. Shrinking leaves a bias only where it takes one to fail; without, no other defect comes in."""
    return [failing.but(**{**generic, "bias": failing.bias}) for generic in GENERIC]


def _explains(mistake: Mistake, check: Check, context: Context, tried: list[Case]) -> bool:
    other = mistaken(mistake.id)
    if check.id in OWN_FACTS and mistake.agrees_with:
        return _is_of_this_form(other, check, context, tried)
    if not all(holds(check, _with(context, oracle=other), case) for case in tried):
        return False
    return not all(holds(check, _with(context, subject=other), case) for case in tried)


def _is_of_this_form(other: Equation, check: Check, context: Context, tried: list[Case]) -> bool:
    """Of a question that no oracle has a part in: a reference's form explains it that fails it, too, and that the
    subject agrees with everywhere else."""
    function = CHECKS["forward.random_parameters"]
    return not any(holds(check, _with(context, subject=other), case) for case in tried) and all(
        holds(function, _with(context, oracle=other), case) for case in tried
    )


def _agreement(mistake: Mistake, context: Context, failing: Case) -> int:
    """In how many questions of the battery the subject and the mistake agree."""
    other = mistaken(mistake.id)
    stand_in = _with(context, oracle=other)
    case = failing.but(**GENERIC[0], bias=True, dropout=0.0)
    same = sum(
        holds(c, context, case) == holds(c, _with(context, subject=other), case) for c in _facts(context)
    )
    return same + sum(
        holds(check, stand_in, failing.but(**{**GENERIC[0], "bias": True, **_domain(check)}))
        for check in _battery(context)
    )


def _facts(context: Context) -> list[Check]:
    return [c for id_ in OWN_FACTS if (c := CHECKS.get(id_)) and c.applies(context.variant)]


def _battery(context: Context) -> list[Check]:
    return [c for id_ in BATTERY if (c := CHECKS.get(id_)) and c.applies(context.variant)]


def _domain(check: Check) -> dict[str, object]:
    if not check.domain.dropout:
        return {"dropout": 0.0}
    return {"dropout": check.domain.dropout, "in_features": 3, "batch": (16,), "dtype": "float32"}


def _with(
    context: Context, *, subject: Implementation | None = None, oracle: Oracle | None = None
) -> Context:
    return dataclasses.replace(
        context, subject=subject or context.subject, oracle=oracle or context.oracle, worst=Worst()
    )


def holds(check: Check, context: Context, case: Case) -> bool:
    """Whether the check passes at one case; anything but a pass counts as not."""
    try:
        (check.explained_by if context.explains else check.function)(context, case)
    except Exception:
        return False
    return True


def described(mistake: Mistake, tried: int) -> Diagnosis:
    """The catalogue's words on a mistake that matched in every case tried."""
    return Diagnosis(
        mistake.id,
        mistake.summary,
        mistake.failure_mode,
        tried,
        tried,
        mistake.agrees_with,
        mistake.documented,
        mistake.severity,
    )

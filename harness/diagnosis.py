"""A failing claim explained: the catalogued mistake that, put in the oracle's place, the subject agrees with."""

from __future__ import annotations

import dataclasses

from harness.ask import Ask
from harness.cases import Case
from harness.registry import Check
from oracles.equation import Equation
from oracles.mistakes import Mistake, mistakes_of
from reports.model import Diagnosis

# Small enough to be quick, large enough that few mistakes coincide: distinct sizes, even rank, scale 2/3 or 4, bias.
GENERIC = (
    {"in_features": 6, "out_features": 5, "rank": 4, "alpha": 3.0, "bias": True, "batch": (5,), "seed": 1},
    {"in_features": 4, "out_features": 7, "rank": 2, "alpha": 8.0, "bias": True, "batch": (3,), "seed": 2},
)


def diagnose(check: Check, ask: Ask, failing: Case, mode: str | None) -> Diagnosis | None:
    """The first mistake whose values equal the subject's at the failing case and two more; None if none does."""
    tried = [failing] + [c for c in (failing.but(**g) for g in GENERIC) if not holds(check, ask, c)]
    for mistake in mistakes_of(ask.variant.id):
        stand_in = dataclasses.replace(ask, oracle=Equation(mistake.forms, mistake.id), worst=type(ask.worst)())
        if all(holds(check, stand_in, case) for case in tried):
            return described(mistake, len(tried))
    return None


def holds(check: Check, ask: Ask, case: Case) -> bool:
    """Whether the check passes at one case; anything but a pass counts as not."""
    try:
        check.function(ask, case)
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
        mistake.documented_by,
        mistake.severity,
    )

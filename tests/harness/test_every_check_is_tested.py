"""Every check has a broken subject that it alone finds out: with the check emptied, that subject passes it.

`test_broken_subjects.py` and `tests/models/test_checks.py` demand that the named checks fail. So a check that has been
emptied is noticed by one of those tests, if it is named there at all and if it is the check that fails, not what is
asked of a subject before any check.
"""

from __future__ import annotations

import dataclasses

import pytest

from harness.cases.profiles import Profile
from harness.engine.checks import CHECKS, load_checks
from oracles.implementation import Implementation
from tests.models import test_checks as models
from tests.subjects import (  # noqa: F401  (they fill the table)
    awkward_loaders,
    broken_alone,
    broken_contexts,
    broken_rank_stabilised,
    checkpoint_loaders,
)
from tests.subjects.broken import BROKEN
from tests.subjects.judged import once

TWELVE = Profile("default", 12, 0)
# Whose subjects stand in tables of their own: test_lives.py and test_kinds.py demand that each has one.
ELSEWHERE = ("lifecycle", "layers")


def finders() -> dict[str, list[tuple[str, Implementation]]]:
    """check -> the subjects that it must find out, each with its variant."""
    found: dict[str, list[tuple[str, Implementation]]] = {}
    for broken in BROKEN:
        for check in broken.caught:
            found.setdefault(check, []).append((broken.variant, broken.make()))
    for subject, check, variant in models.BROKEN:
        found.setdefault(f"targets.{check}", []).append((variant, subject()))
    return found


def test_every_check_has_a_broken_subject() -> None:
    """A check that no broken subject is named for could be emptied, and nobody would notice."""
    named = set(finders())
    own = {id_ for id_, check in load_checks().items() if check.info.aspect not in ELSEWHERE}
    assert own == named


@pytest.mark.parametrize("check", sorted(finders()))
def test_an_emptied_check_finds_nothing(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the check's own body that finds its subjects out."""
    emptied = dataclasses.replace(load_checks()[check], function=lambda context, case: None)
    monkeypatch.setitem(CHECKS, check, emptied)
    for variant, subject in finders()[check]:
        outcomes = {c.outcome for c in once(subject, [variant], lambda c: c.id == check, TWELVE)}
        assert outcomes == {"pass"}, f"{check} still finds {type(subject).__name__} out"

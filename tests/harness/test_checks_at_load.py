"""A check that is registered with a name that does not exist is refused when the checks are loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.engine import checks
from harness.engine.checks import CHECKS, BadCheck, Check, check, load_checks, validate
from harness.engine.session import OF_AUTHORS

ID = "scale.effective"


def with_one(**changes: Any) -> dict[str, Check]:
    """The checks, one of them changed."""
    all_ = dict(load_checks())
    info = {k: v for k, v in changes.items() if k in ("aspect", "severity", "follows")}
    entry = {k: v for k, v in changes.items() if k not in info}
    all_[ID] = dataclasses.replace(all_[ID], info=dataclasses.replace(all_[ID].info, **info), **entry)
    return all_


WRONG = {
    "aspect": ({"aspect": "scales"}, "aspect 'scales', expected one of shapes, init"),
    "severity": ({"severity": "fatal"}, "severity 'fatal', expected one of critical, major"),
    "follows": ({"follows": ("forward.random",)}, "follows 'forward.random', expected another check's id"),
    "itself": ({"follows": (ID,)}, f"follows '{ID}', expected another check's id"),
    "against": ({"against": ("pfet",)}, "against 'pfet', expected one of peft, paper"),
    "no oracle": ({"against": ()}, "is asked of no oracle"),
    "no variant": ({"applies": lambda variant: False}, "is asked of no variant"),
    "dtypes": ({"domain": checks.Domain(dtypes=("half",))}, "dtypes 'half', expected one of float64"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_name_that_does_not_exist_is_refused(wrong: str) -> None:
    """The sentence names the check, what was given and what was expected."""
    changes, words = WRONG[wrong]
    with pytest.raises(BadCheck) as refused:
        validate(with_one(**changes))
    assert str(refused.value).startswith(f"check {ID} ")
    assert words in str(refused.value)


def test_what_is_there_is_valid() -> None:
    validate(load_checks())


def test_a_second_check_of_the_same_name_is_refused() -> None:
    """It would take the first one's place in the catalogue, and nobody would ask that."""

    def test_effective(context: object, case: object) -> None:
        """Another question."""

    before = dict(load_checks())
    with pytest.raises(BadCheck, match=f"check {ID} is registered twice"):
        check("scale", "minor", title="", failure_mode="")(test_effective)
    assert before == CHECKS


def test_every_check_asks_something() -> None:
    """Its docstring is the question that the review prints."""
    assert not [c.id for c in load_checks().values() if not c.info.question.strip()]


def test_what_authors_are_asked_are_checks() -> None:
    """Elsewhere, too, a mistyped id would leave a check out."""
    assert not OF_AUTHORS - set(load_checks())

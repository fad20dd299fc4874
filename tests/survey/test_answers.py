"""What is kept, and which of several answers is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.survey.answers import AUDIT, RECORD, Shelf
from reports.errors import ReportsError
from reports.judge.judgement import judge
from tests.survey.fakes import KEY, broken, kept, question_of


def test_an_answer_comes_back(tmp_path: Path) -> None:
    shelf, asked = Shelf(tmp_path / "shelf"), question_of(tmp_path)
    answer = kept(shelf, asked)
    assert shelf.exact(asked, KEY) == answer
    assert shelf.audit(answer) == judge(broken())


def test_another_subject_or_audit_has_not_answered(tmp_path: Path) -> None:
    shelf, asked = Shelf(tmp_path / "shelf"), question_of(tmp_path)
    kept(shelf, asked)
    assert shelf.exact(asked, "a changed audit") is None
    changed = question_of(tmp_path, text="# changed")
    assert shelf.exact(changed, KEY) is None
    assert shelf.best(changed, KEY) is None


def test_a_failure_is_tried_again_and_shown_until_then(tmp_path: Path) -> None:
    shelf, asked = Shelf(tmp_path / "shelf"), question_of(tmp_path)
    answer = kept(shelf, asked, failure="no such package")
    assert shelf.exact(asked, KEY) is None
    assert shelf.best(asked, KEY) == answer


def test_the_best_is_of_this_audit_then_of_the_closest_profile(tmp_path: Path) -> None:
    shelf, quick = Shelf(tmp_path / "shelf"), question_of(tmp_path)
    default = question_of(tmp_path, profile="default")
    failed = kept(shelf, default, failure="timeout")
    older = kept(shelf, default, key="an older audit")
    assert shelf.best(quick, KEY) == older  # and not the failure
    current = kept(shelf, quick)
    assert shelf.best(quick, KEY) == current
    closer = kept(shelf, default)  # in the failure's place
    assert shelf.best(quick, KEY) == closer
    assert failed not in shelf.any_of(quick)


@pytest.mark.parametrize("name", [RECORD, AUDIT])
def test_what_cannot_be_read_is_asked_again(tmp_path: Path, name: str) -> None:
    shelf, asked = Shelf(tmp_path / "shelf"), question_of(tmp_path)
    answer = kept(shelf, asked)
    (shelf.place(asked, KEY) / name).write_text("{", encoding="utf-8")
    if name == RECORD:
        assert shelf.exact(asked, KEY) is None
    else:
        with pytest.raises(ReportsError):
            shelf.audit(answer)

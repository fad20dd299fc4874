"""`python -m harness.survey`: goes on where it was, one failure stops nothing, and says what is not checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.subjects import resolve
from harness.survey import __main__ as survey
from harness.survey import asking
from harness.survey.answers import Shelf
from reports.judge.judgement import judge
from reports.store import audit_json
from tests.survey.fakes import broken, process, question_of

# Every time it is run it leaves a line; the library `lost` fails.
CODE = """
import shutil, sys
open({log!r}, "a").write(sys.argv[2] + "\\n")
if sys.argv[2] == "lost": sys.exit("ERROR: no such package")
shutil.copy({made!r}, sys.argv[1] + "/audit.json")
"""


class Place:
    """A survey of two libraries in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        (folder / "docs/survey/checked").mkdir(parents=True)

    def survey(self, *options: str) -> int:
        return survey.main(
            ["--audit-profile", "quick", "--docs", str(self.folder / "docs"), "--jobs", "1", *options],
            Shelf(self.folder / "shelf"),
        )

    def asked(self) -> list[str]:
        """What was asked since the last time."""
        found = self.log.read_text(encoding="utf-8").split()
        self.log.write_text("", encoding="utf-8")
        return found

    def page(self) -> str:
        return (self.folder / "docs/survey.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    audit_json.write(judge(broken()), tmp_path / "made.json")
    monkeypatch.setattr(resolve, "shipped", lambda: ["fake", "lost"])
    monkeypatch.setattr(survey, "question", lambda name, profile: question_of(tmp_path, name, profile))
    monkeypatch.setattr(survey, "audit_key", lambda: "this audit")
    monkeypatch.setattr(asking, "POLL", 0.05)
    code = CODE.format(log=str(made.log), made=str(tmp_path / "made.json"))
    monkeypatch.setattr(asking, "command", process(code))
    return made


def test_one_that_fails_is_a_row_and_the_rest_is_asked(place: Place) -> None:
    assert place.survey() == 1
    assert place.asked() == ["fake", "lost"]
    assert (
        "| lost | The run ended with exit code 1 before it was complete: no such package. |" in place.page()
    )
    assert "(survey/fake.md#fake-delora-d1)" in place.page()


def test_it_goes_on_where_it_was(place: Place) -> None:
    place.survey("--only", "fake")
    assert place.asked() == ["fake"]
    assert "it has not been asked yet" in place.page().lower()
    place.survey()
    assert place.asked() == ["lost"]


def test_a_changed_audit_asks_anew_unless_told_to_keep(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.survey("--only", "fake")
    place.asked()
    monkeypatch.setattr(survey, "audit_key", lambda: "a changed audit")
    place.survey("--only", "fake", "--keep")
    assert place.asked() == []
    assert "quick, by another state of the audit" in place.page()
    place.survey("--only", "fake")
    assert place.asked() == ["fake"]
    assert "another state" not in place.page()


def test_pages_alone_ask_nothing(place: Place) -> None:
    place.survey("--pages")
    assert place.asked() == []


def test_what_is_not_checked_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.survey("--only", "fake")
    said = capsys.readouterr().out
    assert "fake, lora D1" in said
    assert "not checked" in said
    assert "2 findings are called a bug, 0 of them checked by hand, 0 of these false." in said


def test_a_file_about_no_library_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.folder / "docs/survey/checked/other.toml").write_text("", encoding="utf-8")
    place.survey("--pages")
    assert "checked/other.toml is about no shipped subject (fake and lost)" in capsys.readouterr().out


def test_an_audit_made_elsewhere(place: Place) -> None:
    made = broken()
    subject = dataclasses.replace(made.subject, ref="fake")
    audit_json.write(judge(dataclasses.replace(made, subject=subject)), place.folder / "handed.json")
    place.survey("--take", str(place.folder / "handed.json"))
    assert place.asked() == []
    assert "| quick, by another state of the audit |" in place.page()
    assert "a time not known" in place.page()


def test_an_audit_of_no_shipped_subject(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.survey("--take", str(place.folder / "made.json")) == 4
    assert (
        "it is about lora_lite under the profile quick, expected one of fake, lost" in capsys.readouterr().err
    )


@pytest.mark.parametrize("only", ["nosuch", ",", ""])
def test_no_library(place: Place, capsys: pytest.CaptureFixture[str], only: str) -> None:
    assert place.survey("--only", only) == 4
    assert f"survey: --only '{only}': expected one or more of fake, lost" in capsys.readouterr().err
    assert place.asked() == []


def test_a_checked_file_that_cannot_be_used(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.folder / "docs/survey/checked/fake.toml").write_text("x = 1", encoding="utf-8")
    assert place.survey() == 4
    assert "fake.toml has x" in capsys.readouterr().err
    assert place.asked() == []

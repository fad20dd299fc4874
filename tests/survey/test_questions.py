"""The keys under which answers are kept: what may change an answer changes them, what may not does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.subjects import resolve
from harness.survey.questions import audit_key_of, question
from tests.survey.fakes import question_of

FILES = {
    "harness/test_forward.py": True,
    "harness/checkpoints/adapter_folder.py": True,
    "oracles/variants/lora.py": True,
    "refs/digests.json": True,
    "harness/subjects/resolve.py": True,
    "harness/subjects/keras.py": False,  # a subject's own key has it
    "harness/survey/overview.py": False,
    "reports/text.py": False,  # what is said is said anew each time
    "oracles/notes.txt": False,
}


@pytest.mark.parametrize("changed", FILES)
def test_the_audits_key(tmp_path: Path, changed: str) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before", encoding="utf-8")
    before = audit_key_of(tmp_path, ["keras"])
    (tmp_path / changed).write_text("after", encoding="utf-8")
    assert (audit_key_of(tmp_path, ["keras"]) != before) is FILES[changed]


def test_the_subjects_key(tmp_path: Path) -> None:
    """Its file and the declarations beside it."""
    first = question_of(tmp_path).subject_key
    (tmp_path / "fake.toml").write_text("", encoding="utf-8")
    second = question_of(tmp_path).subject_key
    third = question_of(tmp_path, text="# another").subject_key
    assert len({first, second, third}) == 3
    assert question_of(tmp_path).subject_key == third


def test_a_subject_with_an_environment_of_its_own() -> None:
    asked = question("keras", "quick")
    assert asked.metadata is not None
    assert asked.file == resolve.SHIPPED / "keras.py"
    assert asked.command == "pytest harness/ --subject keras --audit-profile quick --report"

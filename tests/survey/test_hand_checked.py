"""Findings that were checked by hand: which entry speaks of which finding, and what does not fit is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.survey.hand_checked import BadChecked, Checked, complaints, load, standing
from reports.model import Finding
from tests.survey.fakes import audit_of, broken

AUDIT = audit_of(broken())
ENTRY = Checked(
    "fake", "0.1.0", ("delora",), ("lib/a.py:3",), "true", "It is so.", ("forward.random_parameters",)
)
FILE = """
[[checked]]
version = "0.1.0"
variants = ["delora"]
checks = ["forward.random_parameters"]
read = ["lib/a.py:3"]
verdict = "true"
note = "It is so."
"""
DRAFT = 'issue_draft = "Wrong"\nscript = "fake.py"\nfix = "Do it."\nsearched = "nothing"\n'


def bug(variant: str) -> Finding:
    return next(f for f in AUDIT.findings if f.variant == variant and f.tag == "BUG")


def with_(**changed: object) -> Checked:
    return dataclasses.replace(ENTRY, **changed)  # type: ignore[arg-type]


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "fake.toml").write_text(FILE, encoding="utf-8")
    assert load(tmp_path) == {"fake": [ENTRY]}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[[checked]]", "[[checked", "fake.toml cannot be read"),
        ("[[checked]]", "[checked]", "expected [[checked]] tables"),
        ('note = "It is so."', "", "fake.toml, entry 1 lacks note"),
        ('"true"', '"yes"', "verdict is 'yes', expected one of 'true', 'true, misnamed' and 'false'"),
        ('["lib/a.py:3"]', '["lib/a.py"]', "'lib/a.py', expected file:line"),
        ('["delora"]', '"delora"', "variants is 'delora', expected a list of strings"),
        ('checks = ["forward.random_parameters"]', "", "neither which checks nor which title"),
        ("[[checked]]", "[[checked]]\nseverity = 'x'", "has severity, expected some of"),
        ("[[checked]]", "[[checked]]\nfix = 'x'", "has fix without issue_draft, script and searched"),
        ('verdict = "true"', f'verdict = "false"\n{DRAFT}', "is false and has a draft"),
        ("[[checked]]", "[[checked]]\nbeside = 'yes'", "beside is 'yes', expected true or false"),
        ("[[checked]]", "[[checked]]\nbeside = true", "was seen beside the claims and has no draft"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, before: str, after: str, words: str) -> None:
    (tmp_path / "fake.toml").write_text(FILE.replace(before, after), encoding="utf-8")
    with pytest.raises(BadChecked) as refused:
        load(tmp_path)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "is_about"),
    [
        ({}, True),
        ({"checks": ("forward.random_parameters", "init.identity")}, False),
        ({"variants": ("lora",)}, False),
        ({"checks": (), "title": "THE TITLE"}, True),
        ({"title": "another"}, False),
    ],
)
def test_whom_an_entry_is_about(changed: dict[str, object], is_about: bool) -> None:
    title = {"title": bug("delora").title} if changed.get("title") == "THE TITLE" else {}
    found = standing(AUDIT, bug("delora"), [with_(**{**changed, **title})])
    assert found.is_checked is is_about
    assert found.words == ("checked by hand: true" if is_about else "not checked")


def test_an_entry_of_another_version_counts_as_none() -> None:
    found = standing(AUDIT, bug("delora"), [with_(version="0.0.9")])
    assert not found.is_checked
    assert found.words == "not checked in 0.1.0; in 0.0.9 it was true"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"checks": ("init.identity",)}, "matches no finding"),
        ({"version": "0.0.9"}, "is of version 0.0.9, and 0.1.0 was audited"),
        ({"verdict": "false"}, "says that it is false, and the audit still tells it"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], words: str) -> None:
    said = list(complaints(AUDIT, "fake", [with_(**changed)]))
    assert any(words in sentence for sentence in said)


def test_what_no_claim_asks_needs_no_finding() -> None:
    seen = with_(beside=True, checks=(), issue_draft="Seen")
    assert not standing(AUDIT, bug("delora"), [seen]).is_checked
    assert not any("entry" in sentence for sentence in complaints(AUDIT, "fake", [seen]))


def test_what_fits_is_not_named() -> None:
    """Only the bug without an entry is; a false one that is not told any more is as it should be."""
    mended = with_(verdict="false", checks=("init.identity",))
    said = list(complaints(AUDIT, "fake", [ENTRY, mended]))
    assert [f"{bug('lora').id} (" in s and "not checked" in s for s in said] == [True]

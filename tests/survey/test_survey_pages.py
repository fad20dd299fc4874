"""The pages: every link leads somewhere, nothing is loaded, nothing of a subject is markup."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from harness.survey import hand_checked, overview, survey_pages, unanswered
from harness.survey.answers import Answer
from harness.survey.hand_checked import Checked
from reports.model import Audit
from tests.reports.runs import CHECKS, VARIANTS
from tests.survey.fakes import audit_of, broken

ENTRY = Checked(
    "fake", "0.1.0", ("delora",), ("lib/a.py:3",), "true", "It is so.", ("forward.random_parameters",),
    issue_draft="One norm for all\n\nThe output of `x` is <b>wrong</b>.", script="fake_norm.py", fix="One norm each.",
    searched="its issues: nothing",
)  # fmt: skip
MENDED = dataclasses.replace(
    ENTRY, verdict="false", checks=("init.identity",), issue_draft="", script="", fix="", searched=""
)
ANSWER = Answer("fake", "quick", "s", "a", "2026-11-27", 125.0, "pytest harness/ --subject fake")
SILENT = dataclasses.replace(ANSWER, library="lost", failure="no <such> package")
AUDIT = audit_of(broken())


def survey(audit: Audit = AUDIT, *entries: Checked) -> survey_pages.Survey:
    row = overview.row(ANSWER, audit, entries or (ENTRY, MENDED), "fake==0.1.0", outdated=False)
    rows = (row, overview.Row(SILENT, "lost==1", True, "lost"))
    titles = survey_pages.titles({v: info.title for v, info in VARIANTS.items()}, rows)
    return survey_pages.Survey(rows, titles, tuple(unanswered.asked({"fake": audit}, CHECKS)))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    survey_pages.write(survey(), tmp_path)
    return tmp_path


def test_a_page_for_each_library_that_answered(docs: Path) -> None:
    assert sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.*")) == [
        "survey.html", "survey.md", "survey/fake.md",
    ]  # fmt: skip


def test_links_of_markdown_lead_somewhere(docs: Path) -> None:
    pages = [docs / "survey.md", docs / "survey/fake.md"]
    targets = {p: set(re.findall(r'<a id="([^"]+)"', p.read_text(encoding="utf-8"))) for p in pages}
    links = [(p, link) for p in pages for link in re.findall(r"\]\(([^)]+)\)", p.read_text(encoding="utf-8"))]
    anchored = [(p, *link.split("#")) for p, link in links if "#" in link]
    assert len(anchored) > 5
    for page, file, anchor in anchored:
        assert anchor in targets[(page.parent / file).resolve() if file else page], (page, anchor)


def test_links_of_the_page_lead_somewhere(docs: Path) -> None:
    words = (docs / "survey.html").read_text(encoding="utf-8")
    ids = re.findall(r'id="([^"]+)"', words)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="([^"]+)"', words)
    assert links
    assert {link for link in links if not link.startswith("#") or link[1:] not in ids} == set()


def test_each_cell_leads_to_its_gravest_finding(docs: Path) -> None:
    words = (docs / "survey.md").read_text(encoding="utf-8")
    assert "(survey/fake.md#fake-delora-d1): 1 bug" in words
    assert "(survey/fake.md#fake-lora-d1): 1 bug" in words
    assert "1 not offered" in words or "2 not offered" in words


def test_nothing_is_loaded(docs: Path) -> None:
    words = (docs / "survey.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|link|iframe)\b|\bsrc=|url\(|@import|https?://", words)
    assert "prefers-color-scheme: dark" in words


def test_a_library_without_an_answer_is_a_row(docs: Path) -> None:
    assert "| lost | No &lt;such&gt; package. | 2026-11-27 |" in (docs / "survey.md").read_text(
        encoding="utf-8"
    )
    assert "No &lt;such&gt; package." in (docs / "survey.html").read_text(encoding="utf-8")


def test_the_tables_are_tables(docs: Path) -> None:
    words = (docs / "survey.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(words)
    assert (
        sum(t.type == "table_open" for t in tokens) == 4
    )  # libraries, without an answer, and the two of checks


def test_how_a_bug_was_checked_stands_beside_it(docs: Path) -> None:
    for name in ("survey/fake.md", "survey.html"):
        words = (docs / name).read_text(encoding="utf-8")
        assert words.count("Checked by hand: true.") == 1
        assert words.count("Not checked.") == 1
        assert "It is so." in words
        assert "One norm for all" in words
        assert "What the audit had said wrongly" in words


def test_a_draft_is_escaped_in_the_page(docs: Path) -> None:
    assert "&lt;b&gt;wrong&lt;/b&gt;" in (docs / "survey.html").read_text(encoding="utf-8")


def test_what_was_seen_beside_the_claims_is_told() -> None:
    seen = dataclasses.replace(
        ENTRY, beside=True, checks=(), issue_draft="Seen\n\nThere.", script="fake_seen.py"
    )
    found = survey(AUDIT, ENTRY, seen)
    for words in (survey_pages.library(found.rows[0]), survey_pages.page(found)):
        assert "Seen while reading" in words
        assert words.count('id="draft-fake-fake-seen"') == 1
    assert found.unreported == 2


def test_the_lists_of_checks() -> None:
    found = survey()
    assert [a.check for a in found.never_failed] == ["init.identity"]
    dead = {a.check: a.why for a in found.dead}
    assert dead["dropout.active"] == "`merge` is not offered"
    assert dead["save_load.round_trip"] == "asked of no library"
    assert "training.sgd" not in dead
    assert found.at_home == []  # somebody else answers what is answered


def test_what_a_reference_alone_answers_is_told() -> None:
    found = unanswered.asked({"peft": AUDIT}, CHECKS)
    assert "training.sgd" in [a.check for a in unanswered.at_home(found)]
    assert [a.who for a in found if a.check == "training.sgd"] == ["peft"]


def test_no_line_of_a_library_is_quoted(docs: Path) -> None:
    """Places alone: the sample's own line would be in a review."""
    for file in docs.rglob("*.*"):
        assert "return 2 * x" not in file.read_text(encoding="utf-8")
    assert "sample.py:" in (docs / "survey/fake.md").read_text(encoding="utf-8")


def test_a_hostile_name_is_no_markup() -> None:
    run = broken()
    subject = dataclasses.replace(run.subject, name="<img src=x>|`", version="[1](javascript:x)")
    found = survey(audit_of(dataclasses.replace(run, subject=subject)))
    words = survey_pages.page(found)
    assert "<img" not in words
    assert "<img" not in survey_pages.library(found.rows[0])
    assert hand_checked.standing(AUDIT, AUDIT.findings[0], []).words == "not checked"

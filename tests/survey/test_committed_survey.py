"""What is committed under docs/survey/: files that can be used, scripts that are there and need the library alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from harness.subjects import resolve
from harness.subjects.remote.environment import metadata_of
from harness.survey import hand_checked
from harness.survey.questions import ROOT
from oracles.variants import VARIANTS

DOCS = ROOT / "docs"
OURS = {"harness", "oracles", "refs", "reports", "tests", "lora_lite"}
SCRIPTS = sorted((DOCS / "survey/scripts").glob("*.py"))
PAGES = [
    p
    for p in (DOCS / "survey.md", DOCS / "survey.html", *sorted((DOCS / "survey").glob("*.md")))
    if p.is_file()
]


def test_the_checked_files_can_be_used() -> None:
    for library, entries in hand_checked.load(DOCS / "survey/checked").items():
        assert library in resolve.shipped()
        for entry in entries:
            assert set(entry.variants) <= set(VARIANTS), (library, entry.variants)
            assert not entry.script or (DOCS / "survey/scripts" / entry.script).is_file(), entry.script


def test_every_script_belongs_to_a_draft() -> None:
    entries = [e for found in hand_checked.load(DOCS / "survey/checked").values() for e in found]
    assert {p.name for p in SCRIPTS} == {e.script for e in entries if e.script}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_needs_the_library_alone(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not {m.partition(".")[0] for m in modules} & OURS
    metadata = metadata_of(script)
    assert metadata is not None
    assert any("==" in d for d in metadata.dependencies)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_shows_no_folder_of_a_machine(page: Path) -> None:
    found = re.findall(r"(?<![\w.:/<])/(?:tmp|home|root|work|usr|var)/\S*", page.read_text(encoding="utf-8"))
    assert not found, (page.name, found[:3])

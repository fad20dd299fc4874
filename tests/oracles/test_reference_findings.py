"""The scripts that show what the audit finds in PEFT: each still shows it, and each is in the document."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

HOUSE = Path(__file__).parents[2]
SCRIPTS = sorted((HOUSE / "tests" / "reference_findings").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_still_shows_its_finding(script: Path) -> None:
    torch.manual_seed(0)
    runpy.run_path(str(script))


def test_every_script_is_in_the_document() -> None:
    text = (HOUSE / "docs" / "reference_findings.md").read_text(encoding="utf-8")
    assert SCRIPTS
    for script in SCRIPTS:
        assert f"tests/reference_findings/{script.name}" in text

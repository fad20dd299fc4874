"""The reports stand where the design puts them: above refs, below the harness, without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import reports
from oracles.variants import VARIANTS
from refs.vocabulary import QUOTED
from reports import facts

FOLDER = Path(reports.__file__).parent
ABOVE = {"harness", "oracles", "tests", "lora_lite", "torch", "peft", "pytest"}


def test_nothing_from_above_is_imported():
    for file in FOLDER.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not {name.partition(".")[0] for name in names} & ABOVE, file.name


def test_torch_is_not_needed():
    ask = "import sys, reports.api, reports.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=FOLDER.parent, check=False).returncode == 0


def test_the_facts_are_whole():
    table = facts.facts()
    assert set(table) <= set(VARIANTS)
    assert table
    for variant, aspects in table.items():
        assert list(aspects) == list(QUOTED), variant
        assert all(
            list(row) == list(facts.SOURCES.values()) and all(row.values()) for row in aspects.values()
        )

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


# Where text is taken apart that is neither a claim's id nor a sentence about it.
TEXT_FILES = {
    "places.py": "takes a subject's reference apart: path/to/file.py:Class",
    "text.py": "escapes text for markdown and terminals",
    "render/markdown.py": "lays out rendered lines",
    "judge/docstring_search.py": "looks words up in a subject's docstring",
    "store/schema_1.py": "reads documents of schema 1, which had only sentences",
}
METHODS = {"startswith", "endswith", "partition", "rpartition", "removeprefix", "removesuffix", "split"}


def parsing(source: str) -> list[str]:
    """The calls that take a string apart: string methods with a pattern to look for, and anything of `re`."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    methods = [c for c in calls if isinstance(c.func, ast.Attribute)]
    found = [ast.unparse(c) for c in methods if c.func.attr in METHODS and c.args]
    return found + [ast.unparse(c) for c in methods if ast.unparse(c.func.value) == "re"]


def test_no_sentence_and_no_id_is_taken_apart():
    found = {}
    for file in FOLDER.rglob("*.py"):
        name = file.relative_to(FOLDER).as_posix()
        if name not in TEXT_FILES and (calls := parsing(file.read_text(encoding="utf-8"))):
            found[name] = calls
    assert found == {}


def test_taking_a_sentence_apart_is_noticed():
    for call in ('reason.startswith("mode missing")', 'id_.partition("[")', 're.sub(r"\\d", "#", reason)'):
        assert parsing(f"x = {call}")
    assert not parsing('x = " ".join(words.split())')

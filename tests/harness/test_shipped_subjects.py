"""The subject files that are shipped pass on what a library does: what it says is heard, what it saves is read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import subjects

FILES = sorted(Path(subjects.__file__).parent.glob("*.py"))
SILENCING = {"catch_warnings", "simplefilter", "filterwarnings", "redirect_stderr", "redirect_stdout"}
ASKED = {"load", "save", "load_peft", "save_peft", "merge", "merge_model"}


def _called(tree: ast.AST) -> set[str]:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def _refusals(tree: ast.AST) -> Iterator[str]:
    """Exceptions that a subject's method raises itself, but for the one that says what a library does not offer."""
    for method in ast.walk(tree):
        if isinstance(method, ast.FunctionDef) and method.name in ASKED:
            for node in ast.walk(method):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    yield from _called(node.exc) - {"Unsupported"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_library_says_and_saves_is_passed_on(file: Path) -> None:
    """A warning that a subject file swallows looks as silence, and what it refuses itself says nothing of a library."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not SILENCING & _called(tree)
    assert not set(_refusals(tree))

"""The text in which a subject states its choices: the docstrings around the symbols that it names as its sources."""

from __future__ import annotations

import ast
from pathlib import Path

LARGEST = 4 << 20


def docstrings_of(path: Path, symbol: str) -> str:
    """Docstrings of the module, of every class and function on the way to ``symbol``, and of the symbol itself.

    A class that is named whole speaks with its methods' docstrings too. Empty where the file cannot be parsed:
    what cannot be read documents nothing.
    """
    try:
        if path.stat().st_size > LARGEST:
            return ""
        tree: ast.AST = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    texts = [_docstring(tree)]
    for part in symbol.split("."):
        found = next((n for n in ast.iter_child_nodes(tree) if getattr(n, "name", None) == part), None)
        if found is None:
            break
        tree = found
        texts.append(_docstring(tree))
    if isinstance(tree, ast.ClassDef):
        texts += [_docstring(node) for node in tree.body]
    return "\n".join(text for text in texts if text)


def _docstring(node: ast.AST) -> str:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ast.get_docstring(node) or ""
    return ""

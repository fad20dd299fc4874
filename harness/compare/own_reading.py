"""Whether the subject file reads checkpoints itself, where it only wraps a library that lies elsewhere.

How a damaged file is met is then the wrapper's choice (``torch.load``, ``strict=False``), and not the library's.
"""

from __future__ import annotations

import ast
import functools

from harness.compare.blame import lies_elsewhere, subject_file
from oracles.implementation import Implementation

READS = {"load_file", "safe_open", "load_state_dict", "load_safetensors"}
OF_TORCH = ("torch", "np", "numpy", "pickle")


@functools.lru_cache(maxsize=64)
def reads_itself(subject: Implementation) -> str:
    """What the subject file's ``load`` calls of its own to read a file; empty where the library reads it."""
    if not lies_elsewhere(subject):
        return ""
    try:
        tree = ast.parse(subject_file(subject).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, TypeError):
        return ""
    return next(iter(_readers(tree, type(subject).__name__)), "")


def _readers(tree: ast.Module, name: str) -> list[str]:
    """The calls that read files in the class' ``load``, and in what it calls of the same file."""
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    for kind in (c for c in tree.body if isinstance(c, ast.ClassDef) and c.name == name):
        functions |= {f.name: f for f in kind.body if isinstance(f, ast.FunctionDef)}
    found, waiting, seen = list[str](), ["load"], set[str]()
    while waiting:
        at = waiting.pop()
        if at in functions and at not in seen:
            seen.add(at)
            calls = [_called(node.func) for node in ast.walk(functions[at]) if isinstance(node, ast.Call)]
            found += [".".join(filter(None, call)) for call in calls if _is_reading(*call)]
            waiting += [method for _, method in calls]
    return found


def _called(node: ast.expr) -> tuple[str, str]:
    """(what it is called on where that is a name, the function's name)."""
    if isinstance(node, ast.Attribute):
        return node.value.id if isinstance(node.value, ast.Name) else "", node.attr
    return "", node.id if isinstance(node, ast.Name) else ""


def _is_reading(owner: str, function: str) -> bool:
    return function in READS or (function == "load" and owner in OF_TORCH)

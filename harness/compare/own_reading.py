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
    classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
    functions = _functions(tree.body)
    for kind in reversed(_with_bases(name, classes)):
        functions |= _functions(kind.body)
    found, waiting, seen = list[str](), ["load"], set[str]()
    while waiting:
        at = waiting.pop()
        if at in functions and at not in seen:
            seen.add(at)
            calls = [_called(node.func) for node in ast.walk(functions[at]) if isinstance(node, ast.Call)]
            found += [".".join(filter(None, call)) for call in calls if _is_reading(*call)]
            waiting += [method for _, method in calls]
    return found


def _functions(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {f.name: f for f in body if isinstance(f, ast.FunctionDef)}


def _with_bases(name: str, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """The class and those of the same file that it inherits from, nearest first."""
    if name not in classes:
        return []
    own = classes[name]
    rest = {n: c for n, c in classes.items() if n != name}
    return [own, *(c for base in own.bases if isinstance(base, ast.Name) for c in _with_bases(base.id, rest))]


def _called(node: ast.expr) -> tuple[str, str]:
    """(what it is called on where that is a name, the function's name)."""
    if isinstance(node, ast.Attribute):
        return node.value.id if isinstance(node.value, ast.Name) else "", node.attr
    return "", node.id if isinstance(node, ast.Name) else ""


def _is_reading(owner: str, function: str) -> bool:
    return function in READS or (function == "load" and owner in OF_TORCH)

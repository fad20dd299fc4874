"""Whether the subject file reads or writes checkpoints itself, where it only wraps a library that lies elsewhere.

How a damaged file is met is then the wrapper's choice (``torch.load``, ``strict=False``), and not the library's; nor is
it the library's that a whole ``state_dict`` is in the file.
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.compare.blame import lies_elsewhere, lies_in_another_folder, subject_file
from harness.compare.outcome import Deviation, OutsideDomain
from oracles.implementation import Implementation

WRITES = {"save_file", "save"}
READS = {"load_file", "safe_open", "load_state_dict", "load_safetensors"}
OF_TORCH = ("torch", "np", "numpy", "pickle")


@functools.lru_cache(maxsize=64)
def reads_itself(subject: Implementation) -> str:
    """What the subject file's ``load`` calls of its own to read a file; empty where the library reads it."""
    return next(
        (".".join(filter(None, call)) for call in _calls_of(subject, "load") if _is_reading(*call)), ""
    )


@functools.lru_cache(maxsize=64)
def writes_whole_states(subject: Implementation) -> bool:
    """Whether the subject file's ``save`` writes ``state_dict()`` itself, and asks the library for nothing else.

    Of a library in the subject file's own folder both are one hand's, and what is saved is told of it.
    """
    if not lies_in_another_folder(subject):
        return False
    calls = _calls_of(subject, "save")
    plain = {*dir(builtins), *dir(torch.nn.Module), *dir(torch.Tensor), *dir(dict), *dir(str), *dir(Path)}
    known = all(function in plain | WRITES for _, function in calls)
    called = {function for _, function in calls}
    return known and "state_dict" in called and bool(WRITES & called)


@contextmanager
def of_the_library(subject: Implementation) -> Iterator[None]:
    """What deviates inside is the subject file's own where it has put a whole state dict, base and all, into the file.

    Raises OutsideDomain then.
    """
    try:
        yield
    except Deviation as found:
        if not writes_whole_states(subject):
            raise
        why = "the subject file saves all of state_dict(), and not the library behind it"
        raise OutsideDomain(why) from found


def _calls_of(subject: Implementation, method: str) -> list[tuple[str, str]]:
    """(owner, function) of what the subject file calls in one method; none where the library is in that file."""
    if not lies_elsewhere(subject):
        return []
    try:
        tree = ast.parse(subject_file(subject).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, TypeError):
        return []
    return _calls(tree, type(subject).__name__, method)


def _calls(tree: ast.Module, name: str, method: str) -> list[tuple[str, str]]:
    """The calls in the class' method, and in what it calls of the same file."""
    classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
    functions = _functions(tree.body)
    for kind in reversed(_with_bases(name, classes)):
        functions |= _functions(kind.body)
    found, waiting, seen = list[tuple[str, str]](), [method], set[str]()
    while waiting:
        at = waiting.pop()
        if at in functions and at not in seen:
            seen.add(at)
            calls = [_called(node.func) for node in ast.walk(functions[at]) if isinstance(node, ast.Call)]
            found += calls
            waiting += [called for _, called in calls]
    return [call for call in found if call[1] not in functions or call[0] in OF_TORCH]


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

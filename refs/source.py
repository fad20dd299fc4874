"""Find a symbol in a Python file by parsing it, and pick the lines worth quoting.

Works on any file, the audited subject's too: what is wrong with a file becomes one sentence (SourceError).
"""

from __future__ import annotations

import ast
import json
import os
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from refs.errors import SourceError

__all__ = ["Quote", "Span", "digest_tree", "docstrings", "find", "node_of", "numbered", "quote"]

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Node = ast.Module | ast.stmt
Tree = tuple[object, ...]
MODULE = "<module>"
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Span:
    """Lines ``start`` to ``end``, counted from 1, both included."""

    start: int
    end: int


@dataclass(frozen=True)
class Quote:
    """At most ``limit`` consecutive lines of a file, as they stand there."""

    path: Path
    symbol: str
    start: int
    end: int
    lines: tuple[str, ...]


def find(path: Path, symbol: str, anchor: str | None = None) -> Span:
    """The lines of ``symbol`` (``Class.method``, decorators included), or of ``anchor`` inside it.

    ``anchor`` is an expression: the statement that assigns to it, else the one that uses it; ``#2`` behind it
    takes the second such statement, ``#-1`` the last; ``a .. b`` reaches from the one to the other.
    Raises SourceError when the file cannot be parsed or either is not there.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _find_json(path, anchor or symbol)
    try:
        return _find(path, symbol, anchor)
    except RecursionError:
        raise SourceError(f"{path.name} is nested too deeply to be searched") from None


def per_version(function: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """``function(path, ...)``, its answers kept for as long as the file has the same size and time."""

    @lru_cache(maxsize=1024)
    def kept(path: Path, mtime: int, size: int, *args: P.args, **named: P.kwargs) -> T:
        return function(path, *args, **named)

    @wraps(function)
    def asked(path: Path, *args: P.args, **named: P.kwargs) -> T:
        path = Path(path)
        stat = _stat(path)
        return kept(path, stat.st_mtime_ns, stat.st_size, *args, **named)  # type: ignore[arg-type]

    return asked


@per_version
def quote(path: Path, symbol: str, anchor: str | None = None, limit: int = 10) -> Quote:
    """The at most ``limit`` most telling lines of ``symbol``: the anchor's, or the densest in arithmetic.

    Raises SourceError as `find` does.
    """
    span = find(path, symbol, anchor)
    if anchor is not None and path.suffix != ".json":
        span = _with_guard(node_of(path, symbol), span, limit)
    if span.end - span.start >= limit:
        telling = anchor is None and path.suffix != ".json"
        span = _densest(node_of(path, symbol), limit) if telling else Span(span.start, span.start + limit - 1)
    lines = _read(path)[span.start - 1 : span.end]
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    return Quote(path, symbol, span.start, span.start + len(lines) - 1, tuple(lines))


def numbered(path: Path, start: int, end: int) -> tuple[str, ...]:
    """Lines ``start`` to ``end`` of a file, counted from 1. Raises SourceError where it has none of them."""
    lines = tuple(_read(Path(path))[start - 1 : end]) if start > 0 else ()
    if not lines:
        raise SourceError(f"{Path(path).name} has no line {start}")
    return lines


def node_of(path: Path, symbol: str) -> Node:
    """What defines ``symbol``: a function, method, class or assignment; ``<module>`` is the whole file.

    Raises SourceError.
    """
    node: Node = _parse(path)
    for name in [] if symbol == MODULE else symbol.split("."):
        found = _defined(node, name) or _inherited(_parse(path), node, name)
        if found is None:
            raise SourceError(f"`{symbol}` was not found in {path.name}")
        node = found
    return node


def docstrings(path: Path, symbol: str) -> list[tuple[int, str]]:
    """(line, text) of the docstrings of the module, of all on the way to ``symbol``, and of the symbol itself.

    A class that is named whole speaks with its methods' docstrings too. Empty where the file cannot be parsed:
    what cannot be read documents nothing.
    """
    try:
        tree = _parse(Path(path))
    except SourceError:
        return []
    nodes: list[ast.AST] = [tree]
    for name in symbol.split("."):
        found = _defined(nodes[-1], name) or _inherited(tree, nodes[-1], name)
        if found is None:
            break
        nodes.append(found)
    if isinstance(nodes[-1], ast.ClassDef):
        nodes += nodes[-1].body
    return [told for node in nodes for told in (_docstring(node), _defaults(node)) if told]


def _defaults(node: ast.AST) -> tuple[int, str] | None:
    """What a signature says by its texts: ``initializer='he_uniform'`` is a choice that a caller reads."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    values: dict[str, ast.expr] = dict(zip(reversed(names), reversed(given.defaults), strict=False))
    values |= {a.arg: v for a, v in zip(given.kwonlyargs, given.kw_defaults, strict=True) if v is not None}
    told = {name: v.value for name, v in values.items() if isinstance(v, ast.Constant)}
    texts = [f"{name}={value!r}" for name, value in told.items() if isinstance(value, str)]
    return (node.lineno, ", ".join(texts)) if texts else None


def _docstring(node: ast.AST) -> tuple[int, str] | None:
    body = node.body if isinstance(node, ast.Module | Definition) else []
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.strip():
        return first.lineno, first.value
    return None


def _inherited(tree: ast.Module, node: ast.AST, name: str) -> ast.stmt | None:
    """What a class has from its bases in the same file, in their order, nearest first."""
    left, seen = [node], set()
    while left:
        one = left.pop(0)
        for base in one.bases if isinstance(one, ast.ClassDef) else ():
            called = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
            found = None if called in seen else _defined(tree, called)
            seen.add(called)
            if isinstance(found, ast.ClassDef):
                if there := _defined(found, name):
                    return there
                left.append(found)
    return None


def digest_tree(node: ast.AST) -> Tree:
    """``node`` without positions, docstrings, empty fields and contexts: the same on every Python version."""
    fields: list[object] = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, Definition):
            value = _body(node)
        if value is None or value == [] or name in ("ctx", "kind", "type_comment"):
            continue
        fields.append((name, _plain(value)))
    return tuple(fields)


def _find(path: Path, symbol: str, anchor: str | None) -> Span:
    node = node_of(path, symbol)
    if anchor is None:
        return _span(node)
    first, _, last = anchor.partition(" .. ")
    spans = [_find_anchor(path, symbol, node, part.strip()) for part in (first, last) if part]
    if spans[-1].end < spans[0].start:
        raise SourceError(f"`{anchor}` runs backwards in `{symbol}` of {path.name}")
    return Span(spans[0].start, spans[-1].end)


def _plain(value: object) -> object:
    if isinstance(value, ast.AST):
        return digest_tree(value)
    return tuple(_plain(item) for item in value) if isinstance(value, list) else repr(value)


def _read(path: Path) -> list[str]:
    """The file's lines in the encoding it declares. Raises SourceError."""
    if path.exists() and not path.is_file():
        raise SourceError(f"{path.name} cannot be read: it is not a file")
    try:
        with tokenize.open(path) as handle:
            return handle.read().split("\n")
    except OSError as error:
        raise SourceError(f"{path.name} cannot be read: {error.strerror or error}") from None
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise SourceError(f"{path.name} cannot be decoded: {error}") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise SourceError(f"{path.name} cannot be read: {error.strerror or error}") from None


@per_version
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse("\n".join(_read(path)))
    except SyntaxError as error:
        raise SourceError(f"{path.name} is not valid Python: {error.msg} (line {error.lineno})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"{path.name} cannot be parsed: {error}") from None


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of one scope, through if, try, with and loops, but not into functions and classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, Definition | ast.expr):
            yield from _statements(child)


def _defined(scope: ast.AST, name: str) -> ast.stmt | None:
    """The last function or class called ``name`` (the one Python keeps), else its first assignment."""
    statements = list(_statements(scope))
    for statement in reversed(statements):
        if isinstance(statement, Definition) and statement.name == name:
            return statement
    wanted = digest_tree(ast.Name(name))
    return next((s for s in statements if any(digest_tree(t) == wanted for t in _targets(s))), None)


def _targets(statement: ast.AST) -> list[ast.expr]:
    """What ``statement`` assigns to, tuples taken apart."""
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    return [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]


def _span(node: Node | ast.expr) -> Span:
    if isinstance(node, ast.Module):
        return Span(1, max((s.end_lineno or s.lineno for s in node.body), default=1))
    decorators = node.decorator_list if isinstance(node, Definition) else []
    return Span(min([node.lineno, *(d.lineno for d in decorators)]), node.end_lineno or node.lineno)


def _find_anchor(path: Path, symbol: str, node: Node, anchor: str) -> Span:
    text, _, nth = anchor.partition("#")
    try:
        wanted = digest_tree(ast.parse(text.strip(), mode="eval").body)
        which = int(nth or 1)
    except (SyntaxError, ValueError):
        raise SourceError(f"`{anchor}` is not an anchor: an expression is expected") from None
    spans = _assigning(node, wanted) or _using(node, wanted)
    index = which - 1 if which > 0 else which
    if which == 0 or not -len(spans) <= index < len(spans):
        raise SourceError(f"`{anchor}` was not found in `{symbol}` of {path.name}")
    return spans[index]


def _assigning(node: Node, wanted: Tree) -> list[Span]:
    hits = [n for n in ast.walk(node) if any(digest_tree(t) == wanted for t in _targets(n))]
    return sorted((_span(n) for n in hits if isinstance(n, ast.stmt)), key=lambda s: s.start)


def _using(node: Node, wanted: Tree) -> list[Span]:
    """The statements that use the expression; where one is long or compound, the expression's own lines."""
    spans: set[tuple[int, int]] = set()
    for statement in (n for n in ast.walk(node) if isinstance(n, ast.stmt)):
        for own in _expressions(statement):
            for hit in (e for e in ast.walk(own) if isinstance(e, ast.expr) and digest_tree(e) == wanted):
                whole = _span(statement)
                long = hasattr(statement, "body") or whole.end - whole.start >= 10
                shown = _span(hit) if long else whole
                spans.add((shown.start, shown.end))
    return [Span(*pair) for pair in sorted(spans)]


def _expressions(statement: ast.stmt) -> list[ast.expr]:
    """The expressions of a statement itself, without those of the statements inside it."""
    return [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr)]


def _body(node: ast.AST) -> list[ast.stmt]:
    """The statements of a function or class, its docstring left out."""
    body: list[ast.stmt] = getattr(node, "body", [])
    first = body[0] if body else None
    doc = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return body[1:] if doc and isinstance(node, Definition) else body


def _densest(node: Node, limit: int) -> Span:
    """The ``limit`` lines with the most arithmetic, calls, assignments and returns; the first of equals."""
    body: list[ast.AST] = [*_body(node)] or [node]
    start, end = min(getattr(n, "lineno", 1) for n in body), _span(node).end
    weights = dict.fromkeys(range(start, end + 1), 0)
    skipped = {line for n in ast.walk(node) if isinstance(n, ast.Raise) for line in _lines(n)}
    for part in (n for statement in body for n in ast.walk(statement)):
        line = getattr(part, "lineno", None)
        if line in weights and line not in skipped:
            weights[line] += _weight(part)
    last = max(start, end - limit + 1)
    best = max(range(start, last + 1), key=lambda s: (sum(weights.get(s + i, 0) for i in range(limit)), -s))
    return Span(best, min(end, best + limit - 1))


def _with_guard(node: Node, span: Span, limit: int) -> Span:
    """``span`` from the `if` of which it takes the first statement, where that fits: the guard belongs to the line."""
    for guard in (n for n in ast.walk(node) if isinstance(n, ast.If)):
        if guard.body[0].lineno == span.start > guard.lineno and span.end - guard.lineno < limit:
            return Span(guard.lineno, span.end)
    return span


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _weight(node: ast.AST) -> int:
    if isinstance(node, ast.BinOp | ast.AugAssign):
        return 2
    return int(isinstance(node, ast.Assign | ast.AnnAssign | ast.Return | ast.Call))


def _find_json(path: Path, key: str) -> Span:
    """The first line of a JSON file that holds ``key``. Raises SourceError."""
    lines = _read(path)
    try:
        json.loads("\n".join(lines))
    except ValueError as error:
        raise SourceError(f"{path.name} is not valid JSON: {error}") from None
    pattern = re.compile(rf'"{re.escape(key)}"\s*:')
    for number, line in enumerate(lines, start=1):
        if pattern.search(line):
            return Span(number, number)
    raise SourceError(f"`{key}` was not found in {path.name}")

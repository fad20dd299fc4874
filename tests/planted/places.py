"""Where in a library a fault is planted: a symbol, what to look for in its syntax tree, and what to write instead.

Nothing of a library's text stands here: a place is found by names (`call zeros_`, `assign scaling`, `op MatMult`), and
what is written instead is a template of our own in which ``{0}`` is what was found, and ``{left}``, ``{right}``,
``{func}``, ``{args}``, ``{arg0}``, ``{target}``, ``{value}`` are its parts.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


class NoSuchPlace(Exception):
    """The library has nothing there; the text is one sentence."""


@dataclass(frozen=True)
class Place:
    """``file``: relative to the package's parent folder; ``nth``: which of those that are found, in their order."""

    file: str
    symbol: str
    find: str
    by: str
    nth: int = 0


def planted(source: str, places: Sequence[Place]) -> str:
    """The source with every place changed, one after the other. Raises NoSuchPlace."""
    for place in places:
        source = _changed(source, place)
    return source


def _changed(source: str, place: Place) -> str:
    tree = ast.parse(source)
    node = _symbol(tree, place.symbol)
    if place.find == "body":
        return _before_first(source, node, place.by)
    found = list(_matching(node, place.find))
    if len(found) <= place.nth:
        raise NoSuchPlace(f"{place.symbol} in {place.file} has no {place.find} number {place.nth}")
    target = found[place.nth]
    return _replaced(source, target, place.by.format(_text(source, target), **_parts(source, target)))


def _symbol(tree: ast.Module, symbol: str) -> ast.AST:
    node: ast.AST = tree
    for name in symbol.split("."):
        inner = [
            n
            for n in getattr(node, "body", [])
            if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name
        ]
        if not inner:
            raise NoSuchPlace(f"there is no {symbol}")
        node = inner[0]
    return node


def _matching(node: ast.AST, find: str) -> Iterator[ast.AST]:
    """What ``find`` names in a symbol, in the order of the text."""
    what, _, name = find.partition(" ")
    parents = {child: parent for parent in ast.walk(node) for child in ast.iter_child_nodes(parent)}
    for each in _in_order(node):
        if what in ("attr", "name"):
            if _is_read(each, what, name):
                parent = parents[each]
                yield parent if isinstance(parent, ast.Subscript) and parent.value is each else each
        elif (found := FINDERS[what](each, name)) is not None:
            yield found


def _assigned(node: ast.AST, name: str) -> ast.expr | None:
    return node.value if isinstance(node, ast.Assign) and _name(node.targets[0]) == name else None


FINDERS: dict[str, Callable[[ast.AST, str], ast.AST | None]] = {
    "assign": _assigned,
    "stmt": lambda node, name: node if _assigned(node, name) is not None else None,
    "aug": lambda node, name: (
        node if isinstance(node, ast.AugAssign) and _name(node.target) == name else None
    ),
    "call": lambda node, name: node if isinstance(node, ast.Call) and _name(node.func) == name else None,
    "op": lambda node, name: node if isinstance(node, ast.BinOp) and type(node.op).__name__ == name else None,
    "return": lambda node, name: node.value if isinstance(node, ast.Return) else None,
    "test": lambda node, name: node.test if isinstance(node, ast.If) else None,
}


def _is_read(node: ast.AST, what: str, name: str) -> bool:
    kind = ast.Attribute if what == "attr" else ast.Name
    return isinstance(node, kind) and isinstance(node.ctx, ast.Load) and _name(node) == name


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _name(node: ast.AST) -> str:
    """The last name of a target or of what is called: ``scaling`` of ``self.scaling[adapter]``."""
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _parts(source: str, node: ast.AST) -> dict[str, str]:
    names = {"left": "left", "right": "right", "func": "func", "target": "target", "value": "value"}
    found = {name: getattr(node, field, None) for name, field in names.items()}
    if isinstance(node, ast.Call):
        found["arg0"] = node.args[0] if node.args else None
        found["arg1"] = node.args[1] if len(node.args) > 1 else None
    told = {name: _text(source, part) for name, part in found.items() if isinstance(part, ast.AST)}
    if isinstance(node, ast.Call):
        told["args"] = ", ".join(_text(source, a) for a in (*node.args, *node.keywords))
    return told


def _text(source: str, node: ast.AST) -> str:
    if isinstance(node, ast.keyword):
        return f"{node.arg}={_text(source, node.value)}"
    found = ast.get_source_segment(source, node)
    assert found is not None
    return found if isinstance(node, ast.stmt | ast.Name | ast.Attribute) else f"({found})"


def _replaced(source: str, node: ast.AST, text: str) -> str:
    """The source with a node's text exchanged; the tree counts columns in bytes."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    first = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    last = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    whole = source.encode()
    own = f"({text})" if isinstance(node, ast.expr) else text
    return (whole[:first] + own.encode() + whole[last:]).decode()


def _before_first(source: str, node: ast.AST, statement: str) -> str:
    """``statement`` as the first of a function, after its docstring."""
    assert isinstance(node, ast.FunctionDef)
    first = node.body[1 if ast.get_docstring(node) is not None else 0]
    lines = source.splitlines(keepends=True)
    lines.insert(first.lineno - 1, " " * first.col_offset + statement + "\n")
    return "".join(lines)

"""Mutants of a source file: every place where one small change of meaning can be made, as spliced text.

The syntax tree says where; the change is written into the text itself, so that a diff shows the one place. Left
alone are texts for people (docstrings, messages of exceptions) and what has no meaning at run time (annotations).
"""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TEXTS = {"no_match", "extra_repr", "source"}  # functions that only say something
TENSOR_METHODS = {
    "clamp", "clone", "contiguous", "cpu", "detach", "double", "float", "norm", "repeat_interleave", "reshape",
    "sqrt", "square", "squeeze", "t", "to", "triu", "tril", "unsqueeze", "view",
}  # fmt: skip
KEPT_CALLS = {
    "getattr",
    "isinstance",
    "len",
    "setattr",
    "super",
    "type",
    "vars",
    "zip",
    "TypeVar",
    "frozenset",
}
SWAPPED = {"in_features": "out_features", "A": "B", "A0": "B0", "hra_u": "hra_U"}
SWAPPED |= {b: a for a, b in SWAPPED.items()}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: ``file`` with ``source`` instead of what it holds."""

    file: str
    line: int
    kind: str
    original: str
    source: str

    @property
    def diff(self) -> str:
        """The changed lines, without context."""
        lines = difflib.unified_diff(self.original.splitlines(), self.source.splitlines(), n=0, lineterm="")
        return "\n".join(line for line in list(lines)[3:] if not line.startswith("@@"))

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {self.kind}"


Change = tuple[ast.AST, str, str]  # the node, what stands in its place, the kind


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of one file, in the order of its lines; every one compiles and differs from the others."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: dict[str, Mutant] = {}
    for node, text, kind in _walk(ast.parse(source)):
        new = _spliced(source.encode(), starts, node, text)
        if new not in found and new != source and _compiles(new):
            found[new] = Mutant(file, node.lineno, kind, source, new)  # type: ignore[attr-defined]
    return sorted(found.values(), key=lambda m: (m.line, m.kind))


def _spliced(raw: bytes, starts: list[int], node: ast.AST, text: str) -> str:
    first = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    last = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    return (raw[:first] + text.encode() + raw[last:]).decode()


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _walk(node: ast.AST) -> Iterator[Change]:
    for child in _children(node):
        for type_, change in CHANGES:
            if isinstance(child, type_):
                yield from change(child)
        yield from _walk(child)
    if isinstance(node, ast.Module):
        yield from _tables(node)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What can be changed below ``node``: no annotations, decorators, docstrings or messages."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.FunctionDef) and node.name in TEXTS:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_text(child):
                yield child


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return isinstance(targets[0], ast.Name) and targets[0].id in (
        "__all__",
        "SOURCES",
        "Forward",
        "Parameters",
    )


def _with(node: ast.AST, **fields: object) -> str:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def _operator(node: ast.BinOp) -> Iterator[Change]:
    if type(node.op) in OPERATORS:
        yield node, _with(node, op=OPERATORS[type(node.op)]()), "operator"


def _augmented(node: ast.AugAssign) -> Iterator[Change]:
    if type(node.op) in OPERATORS:
        yield node, _with(node, op=OPERATORS[type(node.op)]())[1:-1], "operator"


def _comparison(node: ast.Compare) -> Iterator[Change]:
    if type(node.ops[0]) in COMPARISONS:
        yield node, _with(node, ops=[COMPARISONS[type(node.ops[0])](), *node.ops[1:]]), "comparison"


def _boolean(node: ast.BoolOp) -> Iterator[Change]:
    yield node, _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()), "and/or"


def _unary(node: ast.UnaryOp) -> Iterator[Change]:
    yield node, f"({ast.unparse(node.operand)})", "sign or not dropped"


def _is_flipped(test: ast.expr) -> bool:
    """Whether its comparison's or its sign's own mutant is the negation already."""
    if isinstance(test, ast.Compare):
        return not isinstance(test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return isinstance(test, ast.UnaryOp)


def _condition(node: ast.If | ast.IfExp | ast.While) -> Iterator[Change]:
    if not _is_flipped(node.test):
        yield node.test, f"(not ({ast.unparse(node.test)}))", "condition negated"


def _filter(node: ast.comprehension) -> Iterator[Change]:
    for test in (t for t in node.ifs if not _is_flipped(t)):
        yield test, f"(not ({ast.unparse(test)}))", "condition negated"


def _constant(node: ast.Constant) -> Iterator[Change]:
    value = node.value
    if isinstance(value, bool):
        yield node, str(not value), "flag"
    elif isinstance(value, int):
        yield node, str({0: 1, 1: 0}.get(value, value + 1)), "constant"
    elif isinstance(value, float):
        yield node, repr(value * 2), "constant"


def _call(node: ast.Call) -> Iterator[Change]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in KEPT_CALLS:
        return
    yield from _dropped_call(node, name)
    plain = [a for a in node.args if isinstance(a, ast.Name | ast.Attribute | ast.Call | ast.Subscript)]
    if len(node.args) > 1 and node.args[:2] == plain[:2] and ast.dump(plain[0]) != ast.dump(plain[1]):
        yield node, _with(node, args=[plain[1], plain[0], *node.args[2:]])[1:-1], "arguments swapped"
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            rest = node.keywords[:i] + node.keywords[i + 1 :]
            yield node, _with(node, keywords=rest)[1:-1], f"argument {keyword.arg} dropped"


def _dropped_call(node: ast.Call, name: str) -> Iterator[Change]:
    if isinstance(node.func, ast.Attribute) and node.func.attr in TENSOR_METHODS:
        yield node, ast.unparse(node.func.value), f"{node.func.attr} dropped"
    elif len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred):
        what = name or getattr(node.func, "attr", "call")
        yield node, f"({ast.unparse(node.args[0])})", f"{what} dropped"


def _attribute(node: ast.Attribute) -> Iterator[Change]:
    if node.attr in ("T", "mT"):
        yield node, ast.unparse(node.value), "transpose dropped"
    elif node.attr in SWAPPED and isinstance(node.ctx, ast.Load):
        yield node, _with(node, attr=SWAPPED[node.attr])[1:-1], "name swapped"


def _slice(node: ast.Slice) -> Iterator[Change]:
    if node.step is None and (node.lower is None) != (node.upper is None):
        yield node, _with(node, lower=node.upper, upper=node.lower)[1:-1], "slice turned"


def _strings(node: ast.Compare | ast.Dict) -> Iterator[Change]:
    """A name that is compared with, or looked up."""
    inside = [*node.comparators] if isinstance(node, ast.Compare) else [k for k in node.keys if k]
    for part in inside:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part, repr(part.value + "_"), "name changed"


def _statement(node: ast.stmt) -> Iterator[Change]:
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    stored = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if call or stored or isinstance(node, ast.AugAssign | ast.Delete | ast.Raise | ast.Continue):
        yield node, "pass", "statement removed"


def _early_return(node: ast.If) -> Iterator[Change]:
    for inner in node.body:
        if isinstance(inner, ast.Return):
            yield inner, "pass", "return removed"


def _decorators(node: ast.FunctionDef) -> Iterator[Change]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            yield decorator, "(lambda f: f)", f"{ast.unparse(decorator.func)} dropped"


def _context(node: ast.With) -> Iterator[Change]:
    for item in node.items:
        if item.optional_vars is None:
            yield item.context_expr, "__import__('contextlib').nullcontext()", "context dropped"


def _tables(module: ast.Module) -> Iterator[Change]:
    """The strings of the tables at the module's top."""
    for statement in module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and not _is_text(statement) and statement.value:
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node, repr(node.value + "_"), "name changed"


CHANGES: tuple[tuple[type | tuple[type, ...], Callable[..., Iterator[Change]]], ...] = (
    (ast.BinOp, _operator),
    (ast.AugAssign, _augmented),
    (ast.Compare, _comparison),
    (ast.BoolOp, _boolean),
    (ast.UnaryOp, _unary),
    ((ast.If, ast.IfExp, ast.While), _condition),
    (ast.comprehension, _filter),
    (ast.Constant, _constant),
    (ast.Call, _call),
    (ast.Attribute, _attribute),
    (ast.Slice, _slice),
    ((ast.Compare, ast.Dict), _strings),
    (ast.stmt, _statement),
    (ast.If, _early_return),
    (ast.FunctionDef, _decorators),
    (ast.With, _context),
)

"""No number that a check compares with stands in a test module: all of them are in harness/compare/thresholds.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.compare import thresholds

ROOT = Path(__file__).parents[2]
MODULES = sorted(f for f in (ROOT / "harness").glob("test_*.py") if f.name != "test_references_agree.py")
# Small numbers that no result is compared with.
NO_BOUND = {
    ("test_contexts.py", 1e-4): "a size of weights, whose squares are below float16's smallest number",
    ("test_forward.py", 1e-6): "what the factors are multiplied by before the comparison",
    ("test_init.py", 1e-12): "keeps a division from zero",
    ("test_training.py", 1e-2): "the optimisers' step size",
    ("test_dtype.py", 1e-4): "an optimiser's step size",
    ("test_lifecycle_several.py", 1e-3): "an optimiser's step size",
}
COMPARES = ("judge", "demand", "allclose", "isclose", "close", "assert_close", "approx")
FACTORS = (10, 100, 1000)


def small_numbers(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """(line, value) of every positive float below a tenth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < 0.1:
            yield node.lineno, node.value


def factors(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """(line, value) of 10, 100 or 1000 as a factor or beside a comparison."""
    for node in ast.walk(tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            sides = [node.left, node.right]
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and _name(node.func) in COMPARES:
            sides = [*node.args, *(k.value for k in node.keywords)]
        for side in sides:
            if isinstance(side, ast.Constant) and side.value in FACTORS:
                yield side.lineno, side.value


def uses_of_allclose(tree: ast.AST) -> Iterator[int]:
    """Lines that call torch's comparison with its default tolerances."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in ("allclose", "isclose", "assert_close"):
            yield node.lineno


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def found(tree: ast.AST, file: str = "") -> list[str]:
    """Every bound that stands in a module, as line and value."""
    numbers = [n for n in small_numbers(tree) if (file, n[1]) not in NO_BOUND]
    texts = [f"line {line}: {value:g}" for line, value in (*numbers, *factors(tree))]
    return texts + [f"line {line}: allclose" for line in uses_of_allclose(tree)]


@pytest.mark.parametrize("file", MODULES, ids=lambda f: f.stem)
def test_no_bound_stands_in_a_test_module(file: Path) -> None:
    assert not found(ast.parse(file.read_text(encoding="utf-8")), file.name)


@pytest.mark.parametrize(
    "line", ["gap < 1e-4", "noise = 100 * unit", "context.judge(case, 'y', a, b, 10)", "torch.allclose(a, b)"]
)
def test_a_bound_would_be_noticed(line: str) -> None:
    assert found(ast.parse(line))


def test_the_exceptions_are_still_there() -> None:
    """A number that has gone takes its exception with it."""
    held = {(f.name, v) for f in MODULES for _, v in small_numbers(ast.parse(f.read_text(encoding="utf-8")))}
    assert not set(NO_BOUND) - held


def test_the_page_tells_the_reason_of_every_bound() -> None:
    """docs/tolerances.md has a row for each name of the table, with the value that the table has."""
    page = (ROOT / "docs/tolerances.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `?([^|`]+?)`? \| ([^|]+?) \|", page, flags=re.MULTILINE))
    wanted: dict[str, object] = {**thresholds.THRESHOLDS, **thresholds.ROUNDOFFS}
    wanted |= {n: v for n, v in vars(thresholds).items() if n.isupper() and not isinstance(v, dict)}
    told = {name: rows.get(name) for name in wanted}
    assert told == {name: shown(value) for name, value in wanted.items()}


def shown(value: object) -> str:
    """A bound as the page writes it."""
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" for v in value)
    return f"{value:g}"

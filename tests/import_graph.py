"""Who imports whom in the project, read from the source: `python -m tests.import_graph` prints it.

Every import counts, also those for typing only and those inside functions.
"""

from __future__ import annotations

import ast
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from oracles.variants import VARIANTS as REVIEWED

ROOT = Path(__file__).parents[1]
AUDIT = ("refs", "oracles", "reports", "harness")
FOLDERS = (*AUDIT, "lora_lite", "tests")
VARIANTS = tuple(REVIEWED)
# Where a variant may be named besides the files that are called after it: subjects of their own, the authors' modules,
# what variants share, the catalogue.
MAY_NAME_VARIANTS = ("harness/subjects/", "oracles/authors/", "oracles/variants/", "oracles/disagreements")

Graph = Mapping[str, frozenset[str]]


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything under version control's roof."""
    found = {}
    for folder in FOLDERS:
        top = ROOT / ("src/lora_lite" if folder == "lora_lite" else folder)
        for file in sorted(top.rglob("*.py")):
            parts = (folder, *file.relative_to(top).with_suffix("").parts)
            found[".".join(p for p in parts if p != "__init__")] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    """The parsed source of a module."""
    with tokenize.open(modules()[module]) as file:
        return ast.parse(file.read())


@cache
def graph() -> Graph:
    """module -> the project's modules that it imports; an import of another package's stays a bare name."""
    return {name: frozenset(_imports(name)) for name in modules()}


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if _folder(name.name) in FOLDERS)
        elif isinstance(node, ast.ImportFrom):
            where = _absolute(module, node)
            if _folder(where) in FOLDERS:
                names = (f"{where}.{name.name}" for name in node.names)
                yield from (name if name in modules() else where for name in names)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The name that a relative import means."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    is_package = modules()[module].name == "__init__.py"
    kept = package[: len(package) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _folder(module: str) -> str:
    return module.partition(".")[0]


def room(module: str) -> str:
    """The room of its folder that a module stands in ("harness.compare"), or the folder itself."""
    name = modules()[module].name
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 or name == "__init__.py" else parts[0]


def cycle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A cycle of a graph, or nothing."""
    try:
        TopologicalSorter({a: {b for b in bs if b != a} for a, bs in edges.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def between_rooms(folder: str) -> dict[str, set[str]]:
    """room -> the rooms of the same folder that it imports; modules outside any room are left out."""
    found: dict[str, set[str]] = {}
    for module, imported in graph().items():
        mine = room(module)
        if _folder(module) == folder and mine != folder:
            others = {room(m) for m in imported if m in modules() and _folder(m) == folder} - {folder, mine}
            found.setdefault(mine, set()).update(others)
    return found


def lengths(folders: Iterable[str] = AUDIT) -> dict[str, int]:
    """module.function -> its length in lines, decorators left out."""
    return {
        f"{module}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module in modules()
        if _folder(module) in folders
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def places_that_name_a_variant() -> Counter[str]:
    """file -> how many of its strings are a variant's id, or begin with one and a dot, outside that variant's files."""
    named = re.compile(rf"({'|'.join(VARIANTS)})(\.\w+)?")
    found: Counter[str] = Counter()
    for module, file in modules().items():
        path = file.relative_to(ROOT).as_posix()
        if _folder(module) in AUDIT and not path.startswith(MAY_NAME_VARIANTS):
            strings = [n.value for n in ast.walk(tree(module)) if isinstance(n, ast.Constant)]
            matches = [named.fullmatch(s) for s in strings if isinstance(s, str)]
            found[path] = sum(match is not None and match[1] != file.stem for match in matches)
    return +found


def lines() -> Iterator[str]:
    """The graph between rooms as text, then the sizes."""
    edges = Counter(
        (room(module), room(other))
        for module, imported in graph().items()
        for other in imported
        if other in modules() and _folder(module) in AUDIT and room(module) != room(other)
    )
    for mine in sorted({a for a, _ in edges}):
        yield f"{mine} -> " + ", ".join(f"{b} ({n})" for (a, b), n in sorted(edges.items()) if a == mine)
    sizes = lengths()
    longest = max(sizes, key=lambda name: sizes[name])
    yield f"functions: {len(sizes)}, median {statistics.median(sizes.values()):g} lines"
    yield f"longest: {longest}, {sizes[longest]} lines"
    named = places_that_name_a_variant()
    yield f"places that name a variant outside its file: {named.total()}"
    yield from (f"  {path}: {n}" for path, n in named.most_common())


if __name__ == "__main__":
    print("\n".join(lines()))

"""`adapter-conformance new-subject NAME`: a subject file, its deviations and a workflow, and whether it is sound."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from adapter_conformance import house, layer_guess

WORKFLOW = Path(".github/workflows/adapter-conformance.yml")
USAGE = 4
HELP = f"""Start a subject: writes NAME.py (the subject), NAME.toml (its declared deviations) and {WORKFLOW}
below the folder you stand in, tries the subject on a small layer, and says what is left to fill in. What is not given
is asked for. A file that is there is never overwritten."""
# What `source` is asked for, in the words of somebody who knows the library and not the audit.
ASPECTS = {
    "shapes": "where the adapter's tensors are made",
    "init": "where they get their initial values",
    "scale": "where alpha and rank become a factor",
    "forward": "what computes the adapted output",
    "save_load": "what writes and reads an adapter",
    "targets": "what chooses the modules of a model",
    "dropout": "where dropout is applied",
    "merge": "what folds the adapter into the weight",
}


class Refused(Exception):
    """What was given cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class Given:
    """What there is to know: the class's name, the library's import name, and how a layer is made."""

    name: str
    library: str
    variants: tuple[str, ...]
    layer: str
    dependencies: tuple[str, ...]
    wheel: str

    @property
    def file(self) -> Path:
        """The subject's file: the name in lower case."""
        return Path(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name).lower() + ".py")

    @property
    def distribution(self) -> str:
        return self.library.partition(".")[0]


def main(arguments: Sequence[str]) -> int:
    """0: written, and the subject is sound; 1: written, with something left to fill in; 4: refused."""
    options = _parser().parse_args(list(arguments))
    house.enter()
    sys.path.append(str(Path.cwd()))
    try:
        given = _complete(options)
        guess = layer_guess.guess(given.library, given.layer, given.variants)
        written = write(given, guess)
    except Refused as error:
        print(f"new-subject: {error}", file=sys.stderr)
        return USAGE
    print(*(f"wrote {path}" for path in written), sep="\n")
    return _told(given, guess)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapter-conformance new-subject", description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("name", metavar="NAME", help="the subject's class, such as MyLibrary")
    add("--library", metavar="MODULE", help="what is imported, such as my_library or my_library.layers")
    add("--variants", metavar="V,...", help="lora, pissa, dora, ia3, hra, delora")
    add("--layer", metavar="EXPR", help="how a layer is made from `base` and `spec`, in Python")
    add(
        "--dependency", action="append", default=[], metavar="REQ",
        help="a requirement of the library's own environment (PEP 723); may be repeated",
    )  # fmt: skip
    add(
        "--wheel", default="", metavar="REQ",
        help="what the workflow installs the audit from, an address or a path in the repository: no index has it",
    )  # fmt: skip
    return parser


def _complete(options: argparse.Namespace) -> Given:
    """The options, with what is missing asked for. Raises Refused."""
    if not options.name.isidentifier():
        raise Refused(f"NAME {options.name!r} is no name of a class, expected one such as MyLibrary")
    library = options.library or _asked("--library", "The library, as it is imported")
    if not all(part.isidentifier() for part in library.split(".")):
        raise Refused(
            f"--library {library!r} cannot be imported, expected a module's name such as my_library"
        )
    variants = _variants(options.variants or _asked("--variants", "Its methods, comma-separated"))
    layer = options.layer or _asked("--layer", "How a layer is made, from `base` (nn.Linear) and `spec`")
    try:
        compile(layer, "--layer", "eval")
    except SyntaxError as error:
        raise Refused(f"--layer {layer!r} is no Python expression: {error.msg}") from error
    dependencies = tuple(options.dependency)
    if not dependencies and not _is_here(library):
        dependencies = (library.partition(".")[0], "torch>=2.4")
    return Given(options.name, library, variants, layer, dependencies, options.wheel)


def _asked(option: str, question: str) -> str:
    """The answer on a terminal. Raises Refused where nobody can be asked."""
    if not sys.stdin.isatty():
        raise Refused(f"{option} is missing, and there is no terminal to ask on")
    from rich.prompt import Prompt

    return Prompt.ask(question).strip()


def _variants(given: str) -> tuple[str, ...]:
    from oracles.variants import VARIANTS

    asked = [v.strip() for v in given.split(",") if v.strip()]
    unknown = [v for v in asked if v not in VARIANTS]
    if unknown or not asked:
        raise Refused(f"--variants {given!r}: expected one or more of {', '.join(VARIANTS)}")
    return tuple(v for v in VARIANTS if v in asked)


def _is_here(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ImportError:
        return False


def write(given: Given, guess: layer_guess.Guess) -> list[Path]:
    """The three files. Raises Refused, before anything is written, where one is there already."""
    files = {
        given.file: "subject.py.j2",
        given.file.with_suffix(".toml"): "deviations.toml.j2",
        WORKFLOW: "workflow.yml.j2",
    }
    if there := [str(path) for path in files if path.exists()]:
        raise Refused(
            f"{' and '.join(there)} is there already, and nothing is overwritten: move it, or take another NAME"
        )
    values = _values(given, guess)
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_environment().get_template(template).render(values), encoding="utf-8")
    return list(files)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def _values(given: Given, guess: layer_guess.Guess) -> dict[str, Any]:
    from oracles.variants import VARIANTS

    source = guess.module or given.library
    return {
        "name": given.name,
        "file": given.file.as_posix(),
        "library": given.library,
        "distribution": given.distribution,
        "dependencies": list(given.dependencies),
        "variants": list(given.variants),
        "titles": " and ".join(VARIANTS[v].title for v in given.variants),
        "layer": given.layer,
        "modules": list(dict.fromkeys([given.library, source])),
        "source_module": source,
        "symbols": guess.symbols,
        "aspects": ASPECTS,
        "slots": guess.slots,
        "wheel": given.wheel,
    }


def _told(given: Given, guess: layer_guess.Guess) -> int:
    """Try the subject, and say what is left."""
    left = [f"{given.file}: {line}" for line in guess.open]
    left += [
        f"{given.file}: SOURCES[{a!r}], {words}" for a, words in ASPECTS.items() if a not in guess.symbols
    ]
    if not given.wheel:
        left.append(f"{WORKFLOW}: AUDIT, the wheel's address or its path in the repository; no index has it")
    wrong = _preflight(given)
    for line in wrong:
        print(f"not sound yet: {line}")
    if not wrong:
        print(f"sound: a small {' and '.join(given.variants)} layer was made, called, read and written to")
    if left:
        print("to fill in, as far as the library has it:", *(f"  {line}" for line in left), sep="\n")
    print(f"then: adapter-conformance audit --subject {given.file}:{given.name} --audit-profile quick")
    return int(bool(wrong))


def _preflight(given: Given) -> list[str]:
    """Why the subject cannot be audited, variant by variant."""
    from harness.engine.preflight import broken_wrapper
    from harness.subjects import resolve
    from oracles.variants import VARIANTS

    try:
        subject = resolve.resolve(f"{given.file}:{given.name}").implementation
    except resolve.BadSubject as error:
        return [str(error)]
    if raised := [said for v in given.variants if (said := _raised(subject, v))]:
        return raised
    found = {v: broken_wrapper(subject, VARIANTS[v]) for v in given.variants}
    return [f"{v}: {broken.sentence}" for v, broken in found.items() if broken]


def _raised(subject: Any, variant: str) -> str | None:
    """What `adapt` raises on an ordinary layer: a new file's own mistake, as long as nothing else is known."""
    import torch

    from oracles.implementation import AdapterSpec

    try:
        subject.adapt(torch.nn.Linear(5, 4), AdapterSpec(variant, rank=2, alpha=3.0))
    except Exception as error:
        return f"{variant}: adapt raised {type(error).__name__}: {error}"
    return None

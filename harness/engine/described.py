"""The subject as the reports show it: where its code is, and what its docstrings say."""

from __future__ import annotations

import inspect
import operator
import sys
from pathlib import Path
from types import ModuleType

from harness.engine.docstrings import docstrings_of
from harness.engine.session import Session
from oracles.implementation import Implementation
from refs.vocabulary import ASKED_OF_SUBJECTS
from reports.model import Subject

# Modules whose classes subjects are derived from.
INTERFACE = ("oracles.", "harness.", "builtins", "abc")


def docstrings(subject: Implementation) -> dict[str, str]:
    """Per variant, the text in which the subject states its choices: docstrings of the sources it names."""
    texts = {}
    for variant in sorted(subject.variants):
        found = dict.fromkeys(s for aspect in ASKED_OF_SUBJECTS if (s := source_of(subject, variant, aspect)))
        own = docstring_of(type(subject))
        texts[variant] = "\n".join([own, *(docstrings_of(path, symbol) for path, symbol in found)])
    return texts


def docstring_of(cls: type) -> str:
    """A subject's own class docstring, or the nearest one that it inherits; the interface's says nothing of it."""
    told = (c for c in cls.__mro__ if c is cls or not c.__module__.startswith(INTERFACE))
    return next((inspect.cleandoc(doc) for c in told if (doc := vars(c).get("__doc__"))), "")


def source_of(subject: Implementation, variant: str, aspect: str) -> tuple[Path, str] | None:
    """``subject.source``, asked under the aspect's other names too; None for whatever is no answer.

    What it answers to any word at all is no answer to another name: it had said that it does not know the aspect.
    """
    if found := _answer(subject, variant, aspect):
        return defined_at(*found)
    to_anything = _answer(subject, variant, "")
    answers = (_answer(subject, variant, name) for name in ASKED_OF_SUBJECTS[aspect])
    found = next((a for a in answers if a and a != to_anything), None)
    return defined_at(*found) if found else None


def _answer(subject: Implementation, variant: str, name: str) -> tuple[Path, str] | None:
    try:
        found = subject.source(variant, name)
    except Exception:
        return None
    if not isinstance(found, tuple) or len(found) != 2 or found[0] is None:
        return None
    return Path(found[0]), str(found[1] or "")  # a file without a symbol: nobody is told of a place in it


def defined_at(path: Path, symbol: str) -> tuple[Path, str]:
    """Where a symbol of a loaded module really stands: a method may be a base class's, in another file."""
    if (module := _loaded(path)) is None:
        return path, symbol
    try:
        found = inspect.unwrap(operator.attrgetter(symbol)(module))
        file, name = inspect.getsourcefile(found), found.__qualname__
    except (AttributeError, TypeError, ValueError):
        return path, symbol
    elsewhere = file is not None and "<locals>" not in name and not _same_file(Path(file), path)
    return (Path(str(file)), name) if elsewhere else (path, symbol)


def _loaded(path: Path) -> ModuleType | None:
    """The module of this process that was read from a file."""
    for module in list(sys.modules.values()):
        # Not getattr: of several thousand modules some are imported by it.
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and file.endswith(path.name) and _same_file(Path(file), path):
            return module
    return None


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def described(session: Session) -> Subject:
    """The subject as the reports show it: where its code is, and what its docstrings say."""
    subject = session.subject
    sources = {
        (variant, aspect): place
        for variant in session.variants
        for aspect in ASKED_OF_SUBJECTS
        if (place := source_of(subject, variant, aspect))
    }
    return Subject(subject.name, subject.version, session.ref, sources, docstrings(subject))

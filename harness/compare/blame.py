"""Whose an exception is: where it arose, and whether that is the library or the file that wraps it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, TracebackType

import torch

from oracles.implementation import Implementation, Slot

HERE = Path(__file__).parents[2]
OURS = tuple(str(HERE / folder) for folder in ("harness", "oracles", "reports", "refs"))
SHIPPED = str(HERE / "harness" / "subjects")
REMOTE = os.path.join(SHIPPED, "remote")  # this side of a subject's process: the audit's
TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Place:
    """``file:Lline`` in the subject, as a reader of it writes it; ``wrapper``: in the subject file's own code."""

    file: str
    line: int
    wrapper: bool

    def __str__(self) -> str:
        return f"{self.file}:L{self.line}"


def place_of(error: BaseException, who: Implementation | None) -> Place | None:
    """The innermost frame that is neither torch's nor the audit's; None where there is none.

    What was raised in a process of the subject's own brings its frames along: (file, line, whether it is a wrapper's).
    """
    if (frames := getattr(error, "frames", None)) is not None:
        return next(
            (Place(_shown(f), n, own) for f, n, own in reversed(frames) if not _is_elsewhere(f)), None
        )
    found: Place | None = None
    trace: TracebackType | None = error.__traceback__
    own = _own_code(who) if who is not None else frozenset()
    while trace is not None:
        code = trace.tb_frame.f_code
        if not _is_foreign(code.co_filename):
            found = Place(_shown(code.co_filename), trace.tb_lineno, code in own)
        trace = trace.tb_next
    last = innermost(error)
    if found is None and who is not None and last is not None and _is_a_slot(last.tb_frame.f_code):
        return _of_the_class(who)
    return found


def innermost(error: BaseException) -> TracebackType | None:
    """Where an exception was raised; None for one that never was."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_a_slot(code: CodeType) -> bool:
    """Whether a slot itself raised: the subject's file has not given it what it needs."""
    return code in {f.__code__ for f in vars(Slot).values() if inspect.isfunction(f)}


def _of_the_class(who: Implementation) -> Place | None:
    """The subject's class, in its own file."""
    try:
        return Place(_shown(inspect.getfile(type(who))), inspect.getsourcelines(type(who))[1], wrapper=True)
    except (OSError, TypeError):
        return None


def is_of_the_audit(error: BaseException) -> bool:
    """Whether this side of a subject's process raised by itself, and neither the subject nor what it imports.

    What it raises on purpose (no such attribute, what cannot be sent, a process that is gone) is no mistake.
    """
    if type(error) not in (RuntimeError, NotImplementedError, NameError, KeyError, IndexError):
        return False
    trace = innermost(error)
    here = trace is not None and trace.tb_frame.f_code.co_filename.startswith(REMOTE)
    return here and getattr(error, "frames", None) is None


def _is_foreign(file: str) -> bool:
    """Whether the frame is torch's, Python's or the audit's: no place to look for the subject's mistake."""
    if file.startswith("<"):
        return True
    shipped = file.startswith(SHIPPED) and not file.startswith(REMOTE)
    return file.startswith(TORCH) or (file.startswith(OURS) and not shipped)


def _is_elsewhere(file: str) -> bool:
    """The same of a frame in another process, whose torch is another."""
    return (
        file.startswith("<") or "/site-packages/torch/" in file or file.endswith("/subjects/remote/worker.py")
    )


def _shown(file: str) -> str:
    """The path below site-packages or the present folder, else the file's name."""
    path = Path(file)
    if "site-packages" in path.parts:
        parts = path.parts
        return Path(*parts[len(parts) - parts[::-1].index("site-packages") :]).as_posix()
    here = Path(os.path.realpath("."))
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


@lru_cache(maxsize=64)
def _own_code(who: Implementation) -> frozenset[CodeType]:
    """The wrapper's code: its class's methods and, where the library lies elsewhere, the functions beside the class."""
    found = _methods(type(who))
    module = inspect.getmodule(type(who))
    if module is None or not lies_elsewhere(who):
        return found
    beside = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    return found | {code for function in beside for code in _nested(function.__code__)}


def subject_file(who: Implementation) -> Path:
    """Where the subject's class stands; of one in a process of its own, what is served there. Raises TypeError."""
    connection = getattr(who, "connection", None)
    return Path(inspect.getfile(type(who))) if connection is None else Path(connection.command.subject)


def is_of_the_library(who: Implementation, file: str) -> bool:
    """Whether a file that runs is neither torch's, nor the audit's, nor the subject file itself."""
    try:
        return not _is_foreign(file) and Path(file).resolve() != subject_file(who).resolve()
    except Exception:
        return False


def lies_elsewhere(who: Implementation) -> bool:
    """Whether the subject says that its library's forward pass stands in another file than itself."""
    return _lie_apart(who, Path.resolve)


def lies_in_another_folder(who: Implementation) -> bool:
    """Whether it says that this file is not in its own folder, either."""
    return _lie_apart(who, lambda file: file.resolve().parent)


def _lie_apart(who: Implementation, where: Callable[[Path], Path]) -> bool:
    """Whether the library's forward pass is, by what the subject says, nowhere where the subject is."""
    try:
        places = [who.source(variant, "forward") for variant in who.variants]
        own = where(subject_file(who))
    except Exception:
        return False
    return any(places) and all(where(Path(place[0])) != own for place in places if place)


def _methods(cls: type) -> frozenset[CodeType]:
    """The code of the methods of a subject's class and of its bases, nested functions included."""
    found: set[CodeType] = set()
    for base in cls.__mro__:
        if base in (Implementation, object):
            continue
        for member in vars(base).values():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(function):
                found |= set(_nested(function.__code__))
    return frozenset(found)


def _nested(code: CodeType) -> list[CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [code, *(n for c in inner for n in _nested(c))]

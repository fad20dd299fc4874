"""`--subject REF`: a name in `harness/subjects/`, `package.module:Attr`, or `path/to/file.py:Attr`.

A file with inline metadata (PEP 723) runs in an environment made from that, any file in the interpreter that
`--subject-python` names; the others are imported here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.subjects import releases
from harness.subjects.arrays import from_arrays
from harness.subjects.remote import environment
from oracles import offered_interface
from oracles.array_implementation import ArrayImplementation
from oracles.implementation import Implementation
from oracles.variants import VARIANTS

SHIPPED = Path(__file__).parent
NO_SUBJECTS = ("__init__", "arrays", "peft_release", "releases", "resolve")


class BadSubject(Exception):
    """The reference names nothing that can be audited; the text is one sentence."""


@dataclass(frozen=True)
class Resolved:
    """A subject and where it came from; ``declarations``: the TOML beside it, if there is one."""

    implementation: Implementation
    ref: str
    declarations: Path | None


def shipped() -> list[str]:
    """The names that `--subject` takes as they are."""
    return sorted(p.stem for p in SHIPPED.glob("*.py") if p.stem not in NO_SUBJECTS)


@dataclass(frozen=True)
class Place:
    """Where a subject is to run: an interpreter that exists, or one made from the file's metadata."""

    python: Path | None = None
    offline: bool = False
    say: Callable[[str], None] = print


def resolve(ref: str, place: Place | None = None) -> Resolved:
    """The subject that ``ref`` names. Raises BadSubject."""
    place = place or Place()
    offered_interface.offer()
    if (release := _release(ref)) is not None:
        there = place.python or _made(releases.metadata_of(ref), place, ref)
        return _remote(there, releases.FILE, release, ref)
    if ref == "peft" and place.python is not None:  # a fork, or a release installed somewhere
        return _remote(place.python, releases.FILE, "Peft", ref)
    target, _, attribute = ref.rpartition(":") if ":" in ref else (ref, "", "")
    if not target or (":" in ref and not attribute):
        raise BadSubject(
            f"--subject {ref!r} is no reference; expected NAME, package.module:Attr or file.py:Attr"
        )
    if (file := _file(target, attribute, ref)) and (other := _interpreter(file, place, ref)):
        return _remote(other, file, attribute, ref)
    if place.python is not None:
        raise BadSubject(f"--subject-python needs a subject in a file, and --subject {ref!r} names none")
    if not attribute:
        return _shipped(ref)
    module = _from_file(target, ref) if target.endswith(".py") else _from_package(target, ref)
    return Resolved(_instance(_attribute(module, attribute, ref), ref), ref, _beside(module))


def _release(ref: str) -> str | None:
    """The class for a release of PEFT; None for any other reference. Raises BadSubject."""
    try:
        return releases.class_of(ref)
    except ValueError as error:
        raise BadSubject(str(error)) from error


def _file(target: str, attribute: str, ref: str) -> Path | None:
    """The file that a reference is about; None for a package's module."""
    if not attribute and ref in shipped():
        return SHIPPED / f"{ref}.py"
    file = Path(target).expanduser()
    return file.resolve() if attribute and target.endswith(".py") and file.is_file() else None


def _interpreter(file: Path, place: Place, ref: str) -> Path | None:
    """The Python of the subject's own environment; None where it is to run in this process."""
    if place.python is not None:
        return place.python
    try:
        metadata = environment.metadata_of(file)
    except (environment.BadEnvironment, OSError, UnicodeDecodeError) as error:
        raise BadSubject(f"--subject {ref!r}: {error}") from error
    return _made(metadata, place, ref) if metadata else None


def _made(metadata: environment.Metadata, place: Place, ref: str) -> Path:
    try:
        return environment.interpreter(metadata, place.say, offline=place.offline)
    except (environment.BadEnvironment, OSError) as error:
        raise BadSubject(f"--subject {ref!r}: {error}") from error


def _remote(python: Path, file: Path, attribute: str, ref: str) -> Resolved:
    from harness.subjects.remote.process import Command, NoWorker
    from harness.subjects.remote.proxy import remote_subject

    try:
        found = remote_subject(Command(python, file, attribute))
    except NoWorker as error:
        raise BadSubject(f"--subject {ref!r}: {error}") from error
    _check_identity(found, ref)
    toml = file.with_suffix(".toml")
    return Resolved(found, ref, toml if toml.is_file() else None)


def _shipped(ref: str) -> Resolved:
    if ref not in shipped():
        raise BadSubject(
            f"--subject {ref!r} is not a subject that ships with the audit ({', '.join(shipped())}); "
            "a third-party one is package.module:Attr or path/to/file.py:Attr"
        )
    module = _imported(f"harness.subjects.{ref}", ref)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Implementation) and value is not Implementation
    ]
    return Resolved(_instance(found[-1], ref), ref, _beside(module, SHIPPED / f"{ref}.py"))


def _from_package(name: str, ref: str) -> ModuleType:
    return _imported(name, ref)


def _imported(name: str, ref: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadSubject(f"--subject {ref!r}: importing {name} raised {in_a_line(error)}") from error


def _from_file(path: str, ref: str) -> ModuleType:
    file = Path(path).expanduser()
    if not file.is_file():
        raise BadSubject(f"--subject {ref!r}: there is no file {path}")
    name = f"audited_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = file.resolve().parent
    if folder != SHIPPED.resolve() and str(folder) not in sys.path:
        # The library may lie beside its wrapper; last, so that it hides nothing of ours. A shipped one's neighbours
        # have libraries' names: hqq.py would be the hqq that transformers looks for.
        sys.path.append(str(folder))
    sys.modules[name] = module  # dataclasses and pickling in the file look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadSubject(f"--subject {ref!r}: running {path} raised {in_a_line(error)}") from error
    return module


def in_a_line(error: BaseException) -> str:
    """The exception's kind and its words, in one bounded line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _attribute(module: ModuleType, attribute: str, ref: str) -> Any:
    if not hasattr(module, attribute):
        raise BadSubject(f"--subject {ref!r}: {module.__name__} has no attribute {attribute!r}")
    return getattr(module, attribute)


def _instance(found: Any, ref: str) -> Implementation:
    """The subject, made where it is a class; a library of arrays behind torch's interface."""
    if inspect.isclass(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise BadSubject(
                f"--subject {ref!r}: creating {found.__name__}() raised {in_a_line(error)}"
            ) from error
    if isinstance(found, ArrayImplementation):
        found = from_arrays(found)
    if not isinstance(found, Implementation):
        raise BadSubject(
            f"--subject {ref!r} is a {type(found).__name__}, expected an Implementation (oracles/implementation.py)"
        )
    _check_identity(found, ref)
    return found


def _check_identity(found: Implementation, ref: str) -> None:
    for attribute, kind in (("name", str), ("version", str)):
        if not isinstance(getattr(found, attribute, None), kind):
            raise BadSubject(f"--subject {ref!r}: its {attribute} is missing or no string")
    variants = getattr(found, "variants", None)
    if not isinstance(variants, frozenset | set) or not variants or not set(variants) <= set(VARIANTS):
        raise BadSubject(
            f"--subject {ref!r}: its variants are {variants!r}, expected a non-empty frozenset out of "
            f"{', '.join(VARIANTS)}"
        )


def _beside(module: ModuleType, file: Path | None = None) -> Path | None:
    source = file or (Path(module.__file__) if module.__file__ else None)
    toml = source.with_suffix(".toml") if source else None
    return toml if toml and toml.is_file() else None

"""What is asked of a library, and under which key its answer is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.subjects import resolve
from harness.subjects.remote.environment import BadEnvironment, Metadata, metadata_of
from reports.version import VERSION

ROOT = Path(__file__).parents[2]
# Who answers besides the audit itself: the references run in these.
REFERENCES = ("torch", "peft", "transformers", "loralib")
ASKING = ("harness", "oracles", "refs")  # findings and verdicts are judged anew whenever a page is written
ASIDE = ("harness/survey/", "harness/probe/", "harness/bisect.py")  # they ask no claim
SUFFIXES = (".py", ".toml", ".json", ".safetensors")


@dataclass(frozen=True)
class Question:
    """One library under one profile. ``metadata``: its environment; None where it runs in the audit's own."""

    library: str
    profile: str
    file: Path
    metadata: Metadata | None
    narrowed: tuple[str, ...] = ()  # further options that leave claims out

    @property
    def subject_key(self) -> str:
        """What is asked, whoever asks: the subject's file, its declarations, its environment."""
        beside = [f for f in (self.file, self.file.with_suffix(".toml")) if f.is_file()]
        environment = self.metadata.key if self.metadata else "the audit's own"
        return _hash([environment, *(_content(f) for f in beside), *self.narrowed])

    @property
    def command(self) -> str:
        """The line that asks the same by hand."""
        given = ["--subject", self.library, "--audit-profile", self.profile, *self.narrowed]
        return f"pytest harness/ {' '.join(given)} --report"


def question(library: str, profile: str) -> Question:
    """The question about a shipped subject. A block that cannot be read is told when the library is run."""
    file = resolve.SHIPPED / f"{library}.py"
    try:
        metadata = metadata_of(file)
    except BadEnvironment:
        metadata = None
    return Question(library, profile, file, metadata)


@cache
def audit_key() -> str:
    """The audit that asks: its version, its code, and the versions of the references."""
    return audit_key_of(ROOT, resolve.shipped())


def audit_key_of(root: Path, subjects: Iterable[str]) -> str:
    """``audit_key`` of a checkout; the subjects' own files are no part of it."""
    own = {f"harness/subjects/{name}{end}" for name in subjects for end in (".py", ".toml")}
    files = [(name, file) for name, file in _files(root) if name not in own and not name.startswith(ASIDE)]
    return _hash([VERSION, *map(_version, REFERENCES), *(f"{n} {_content(f)}" for n, f in files)])


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in ASKING:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in SUFFIXES and file.is_file():
                yield file.relative_to(root).as_posix(), file


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

"""An environment for a subject, from the metadata in its file: made once by ``uv``, kept by the metadata's hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

# The reference expression of PEP 723.
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
COMPLETE = ".complete"


class BadEnvironment(Exception):
    """No environment can be made from this metadata; the text is one sentence."""


@dataclass(frozen=True)
class Metadata:
    """What a subject's file asks for: a Python and requirements, as PEP 723's block has them.

    ``overrides`` and ``excludes`` are uv's own ``override-dependencies`` and ``exclude-dependencies``: the versions to
    take whatever a package asks for, and the packages to leave out.
    """

    dependencies: tuple[str, ...]
    requires_python: str | None = None
    overrides: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What an environment made from this is kept under."""
        parts: list[object] = [self.requires_python or _this_python(), *self.dependencies]
        if self.overrides or self.excludes:
            parts += [[*self.overrides], [*self.excludes]]
        text = json.dumps(parts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _this_python() -> str:
    return f"=={sys.version_info.major}.{sys.version_info.minor}.*"


def metadata_of(file: Path) -> Metadata | None:
    """The ``# /// script`` block of a file; None where there is none. Raises BadEnvironment."""
    found = [m for m in BLOCK.finditer(file.read_text(encoding="utf-8")) if m["type"] == "script"]
    if not found:
        return None
    if len(found) > 1:
        raise BadEnvironment(f"{file.name} has {len(found)} script blocks, expected one (PEP 723)")
    lines = found[0]["content"].splitlines()
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        return _checked(tomllib.loads(content))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise BadEnvironment(f"the script block of {file.name} cannot be read: {error}") from error


def _checked(block: dict[str, object]) -> Metadata:
    tool, python = block.get("tool", {}), block.get("requires-python")
    own = tool.get("uv", {}) if isinstance(tool, dict) else {}
    if python is not None and not isinstance(python, str):
        raise TypeError(f"requires-python is {python!r}, expected a string")
    return Metadata(
        _texts(block, "dependencies"),
        python,
        _texts(own, "override-dependencies"),
        _texts(own, "exclude-dependencies"),
    )


def _texts(table: dict[str, object], name: str) -> tuple[str, ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(d, str) for d in value):
        raise TypeError(f"{name} are {value!r}, expected a list of strings")
    return tuple(value)


def interpreter(metadata: Metadata, say: Callable[[str], None], *, offline: bool = False) -> Path:
    """The Python of an environment with these requirements, made on first use. Raises BadEnvironment."""
    folder = platformdirs.user_cache_path("adapter-conformance") / "environments" / metadata.key
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if (folder / COMPLETE).is_file() and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        uv = _uv()
        say(
            f"making an environment for the subject in {folder} (once): {', '.join(metadata.dependencies) or 'nothing'}"
        )
        try:
            _make(uv, metadata, folder, python, offline)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / COMPLETE).touch()
    return python


def _make(uv: str, metadata: Metadata, folder: Path, python: Path, offline: bool) -> None:
    more = ["--offline"] if offline else []
    _run([uv, "venv", "--quiet", *more, "--python", metadata.requires_python or _this_python(), str(folder)])
    if not metadata.dependencies:
        return
    # A folder of wheels that pip is told of is looked at, too: uv reads nothing of pip's.
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        more += ["--find-links", place]
    more += _listed(folder, "--overrides", metadata.overrides) + _listed(
        folder, "--excludes", metadata.excludes
    )
    install = [uv, "pip", "install", *more, "--python", str(python), *metadata.dependencies]
    if os.environ.get("UV_TORCH_BACKEND") or not any(
        re.match("torch|peft", d) for d in metadata.dependencies
    ):
        _run(install)
        return
    try:  # the audit runs on the CPU, whose torch is a twentieth of the size
        _run([*install, "--torch-backend", "cpu"])
    except BadEnvironment as error:
        if "pytorch.org" not in str(error):
            raise
        _run(install)


def _listed(folder: Path, option: str, requirements: tuple[str, ...]) -> list[str]:
    """uv's option with a file of requirements, written beside the environment; nothing where there are none."""
    if not requirements:
        return []
    file = folder / f"{option.strip('-')}.txt"
    file.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    return [option, str(file)]


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise BadEnvironment(
            "uv is not installed: pip install uv, or name an interpreter with --subject-python"
        )
    return found


def _run(command: list[str]) -> None:
    """Run uv, its progress on the terminal's stderr as it comes; its last words are the reason where it fails."""
    process = subprocess.Popen(
        command,
        stdout=sys.stderr.fileno() if _is_real(sys.stderr) else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line.decode(errors="replace").strip())
        print(said[-1], file=sys.stderr, flush=True)
    if process.wait():
        raise BadEnvironment(f"uv could not make the environment: {_reason(said)}")


def _is_real(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False
    return True


def _reason(said: list[str]) -> str:
    """uv's own words, without its boxes, in one line."""
    text = " ".join(re.sub(r"^[×╰─▶│\s]+", "", line) for line in said)
    start = max(text.find("error:"), text.find("No solution found"), 0)
    return " ".join(text[start:].split())[:600] or "it gave no reason"

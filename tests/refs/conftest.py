"""A small repository and a catalogue that pins one of its files, so that nothing here needs a network."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from refs import catalog as catalogue

CODE = '''\
"""A layer."""


class Layer:
    """Holds a factor."""

    def forward(self, x):
        """Scale."""
        scaled = x * self.factor
        return scaled + 1


def helper(x):
    return x
'''


@dataclass(frozen=True)
class Pinned:
    """A clone, its commit, and the catalogue that pins src/layer.py of it as `layer.py`."""

    clone: Path
    commit: str
    toml: Path

    @property
    def catalog(self) -> catalogue.Catalog:
        return catalogue.load(self.toml)


def write_catalog(folder: Path, source: str, files: str, cites: str = "") -> Path:
    """A catalogue with one source `one`."""
    path = folder / "catalog.toml"
    path.write_text(f"[source.one]\n{source}\n[files.one]\n{files}\n{cites}\n", encoding="utf-8")
    return path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def pinned(tmp_path: Path) -> Pinned:
    """A repository with one commit, below a folder of clones."""
    clone = tmp_path / "clones" / "someone+layers"
    (clone / "src").mkdir(parents=True)
    (clone / "src" / "layer.py").write_text(CODE, encoding="utf-8")
    git(clone, "init", "-q", "-b", "main")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "one")
    commit = git(clone, "rev-parse", "HEAD")
    return Pinned(clone, commit, pin(tmp_path, commit, CODE))


def pin(folder: Path, commit: str, code: str, path: str = "src/layer.py") -> Path:
    """The catalogue that pins ``code``."""
    sha256 = hashlib.sha256(code.encode()).hexdigest()
    source = f'kind = "repository"\nname = "someone/layers"\npin = "{commit}"\nlicence = "MIT"\n'
    source += 'url = "https://example.org/{name}/{pin}/{path}#L{start}-L{end}"'
    cites = '[cites.lora]\nforward = ["layer.py:Layer.forward @ scaled"]'
    return write_catalog(folder, source, f'"layer.py" = {{ path = "{path}", sha256 = "{sha256}" }}', cites)

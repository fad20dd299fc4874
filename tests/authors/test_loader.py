"""The loader, on a file that does everything an author's file might."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from oracles.authors import loader
from refs.catalog import Reference, Source
from refs.errors import HashMismatchError
from refs.locate import cache_path

GREEDY = """\
import importlib.util
import sys
from dataclasses import dataclass

import matplotlib.pyplot as plt
import PIL
from transformers.pytorch_utils import Conv1D

from ..utils import PeftConfig, PeftType, transpose

ARGUMENTS = sys.argv[1:]
GPU = importlib.util.find_spec("bitsandbytes")


@dataclass
class Config(PeftConfig):
    kind: str = PeftType.DORA


def quantised(x):
    return rounded(x) + 1
"""


def reference(cache: Path, code: str) -> Reference:
    """``code`` in the cache, pinned."""
    source = Source("one", "repository", "someone/greedy", "0" * 40, "MIT", "")
    made = Reference("greedy.py", source, "greedy.py", hashlib.sha256(code.encode()).hexdigest())
    path = cache_path(made, cache)
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding="utf-8")
    return made


def test_a_greedy_file_runs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["audit", "--report"])
    before = dict(sys.modules)
    found = loader.module(reference(tmp_path, GREEDY), tmp_path, "tuners", loader.peft_package())
    assert found.ARGUMENTS == []
    assert found.GPU is None
    assert found.Config().kind == "DORA"
    assert {n for n, m in sys.modules.items() if m is not before.get(n)} == set()
    assert sys.argv == ["audit", "--report"]


def test_a_failing_file_leaves_nothing_either(tmp_path: Path) -> None:
    before = dict(sys.modules)
    with pytest.raises(ZeroDivisionError):
        loader.module(reference(tmp_path, "import PIL\n1 / 0\n"), tmp_path)
    assert {n for n, m in sys.modules.items() if m is not before.get(n)} == set()


def test_one_function_without_the_rest_of_its_file(tmp_path: Path) -> None:
    code = GREEDY + "\nraise SystemExit('downloads a model')\n"
    found = loader.function(reference(tmp_path, code), "quantised", tmp_path, rounded=round)
    assert found(1.2) == 2


def test_only_the_pinned_bytes_run(tmp_path: Path) -> None:
    pinned = reference(tmp_path, "x = 1\n")
    path = cache_path(pinned, tmp_path)
    path.write_text("x = 2\n", encoding="utf-8")
    with pytest.raises(HashMismatchError, match=r"greedy\.py was changed"):
        loader.module(pinned, tmp_path)
    with pytest.raises(HashMismatchError, match="is not the pinned file"):
        loader._bytes(path, pinned.sha256)

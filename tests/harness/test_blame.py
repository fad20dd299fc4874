"""Whose an exception is: the library's, or that of the file that wraps it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.compare.blame import place_of
from harness.subjects.remote.worker import lies_elsewhere
from oracles.implementation import AdapterSpec, Implementation, Slot

WRAPPER = """
from pathlib import Path
from oracles.implementation import Adapted, Implementation
import {library}


def slots(found):
    return found[0]


class Mine(Implementation):
    name, version, variants = "mine", "1", frozenset({{"lora"}})

    def adapt(self, base, spec):
        if spec.rank == 1:
            return {library}.build(spec)
        return Adapted(base, slots([]))

    def source(self, variant, aspect):
        return {source}
"""
LIBRARY = "def build(spec):\n    return [][spec.rank]\n"
ELSEWHERE = "Path({library}.__file__), 'build'"


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Implementation:
    library = f"library_of_{folder.name}"
    (folder / f"{library}.py").write_text(LIBRARY)
    (folder / f"{folder.name}_wrapper.py").write_text(
        WRAPPER.format(library=library, source=source.format(library=library))
    )
    monkeypatch.syspath_prepend(str(folder))
    wrapper = importlib.import_module(f"{folder.name}_wrapper")
    subject: Implementation = wrapper.Mine()
    return subject


def is_the_wrappers(subject: Implementation, rank: int) -> bool:
    with pytest.raises(IndexError) as raised:
        subject.adapt(nn.Linear(2, 2), AdapterSpec("lora", rank=rank))
    place = place_of(raised.value, subject)
    assert place is not None
    return place.wrapper


def test_a_function_beside_the_class_is_the_wrappers_where_the_library_lies_elsewhere(tmp_path, monkeypatch):
    subject = made(tmp_path, monkeypatch, ELSEWHERE)
    assert lies_elsewhere(subject)
    assert is_the_wrappers(subject, rank=2)
    assert not is_the_wrappers(subject, rank=1)


def test_it_is_the_librarys_where_nothing_says_that_the_library_lies_elsewhere(tmp_path, monkeypatch):
    subject = made(tmp_path, monkeypatch, "None")
    assert not lies_elsewhere(subject)
    assert not is_the_wrappers(subject, rank=2)


def test_a_slot_that_cannot_be_written_is_the_wrappers(tmp_path, monkeypatch):
    """The library has not been called: the file has left `write` out."""
    subject = made(tmp_path, monkeypatch, ELSEWHERE)
    with pytest.raises(TypeError) as raised:
        Slot(torch.ones(2), read=lambda live: live + 1).put(torch.ones(2))
    assert raised.tb
    error = raised.value.with_traceback(raised.tb.tb_next)  # without this file, which is no audit's
    place = place_of(error, subject)
    assert place is not None
    assert place.wrapper
    assert place.line == 11

"""Where a subject's code stands: a method that a class has from a base in another file is quoted from there."""

from __future__ import annotations

from pathlib import Path

from harness.engine.described import defined_at
from tests.subjects import broken_alone, wrapped

FILE, BASES = Path(broken_alone.__file__), Path(wrapped.__file__)


def test_an_inherited_method_is_found_in_its_own_file() -> None:
    assert defined_at(FILE, "FeedforwardGateOff.forward") == (BASES, "Ia3.forward")


def test_what_stands_there_stays_there() -> None:
    assert defined_at(FILE, "FeedforwardGateOff.build") == (FILE, "FeedforwardGateOff.build")


def test_what_is_not_loaded_or_not_there_is_left_as_it_was_named(tmp_path: Path) -> None:
    for path, symbol in ((tmp_path / "x.py", "A.b"), (FILE, "Nobody.forward"), (FILE, "HALF")):
        assert defined_at(path, symbol) == (path, symbol)

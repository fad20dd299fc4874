"""Where a subject's code stands: a method that a class has from a base in another file is quoted from there."""

from __future__ import annotations

from pathlib import Path

from harness.engine.described import defined_at, source_of
from tests.subjects import broken_alone, wrapped

FILE, BASES = Path(broken_alone.__file__), Path(wrapped.__file__)


def test_an_inherited_method_is_found_in_its_own_file() -> None:
    assert defined_at(FILE, "FeedforwardGateOff.forward") == (BASES, "Ia3.forward")


def test_what_stands_there_stays_there() -> None:
    assert defined_at(FILE, "FeedforwardGateOff.build") == (FILE, "FeedforwardGateOff.build")


def test_what_is_not_loaded_or_not_there_is_left_as_it_was_named(tmp_path: Path) -> None:
    for path, symbol in ((tmp_path / "x.py", "A.b"), (FILE, "Nobody.forward"), (FILE, "HALF")):
        assert defined_at(path, symbol) == (path, symbol)


class AnswersAnything(wrapped.Library):
    """Names one symbol for whatever it is asked about, but for what it says it lacks."""

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return None if aspect in ("targets", "dropout") else (FILE, "Refuses.forward")


class KnowsOtherNames(AnswersAnything):
    """Answers to the words that a reader knows."""

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return (FILE, "Refuses.refused") if aspect == "target placement" else None


def test_what_it_answers_to_any_word_is_no_answer_to_another_name_of_what_it_lacks() -> None:
    assert source_of(AnswersAnything(), "lora", "targets") is None
    assert source_of(AnswersAnything(), "lora", "forward") == (FILE, "Refuses.forward")
    assert source_of(KnowsOtherNames(), "lora", "targets") == (FILE, "Refuses.refused")

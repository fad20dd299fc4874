"""Quotes show what is claimed: the words that a fact rests on, from the guard that they stand under."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from refs import catalog
from refs.quotes import cite_file, places
from refs.source import docstrings
from reports import cites, facts

WORDS = tomllib.loads(Path(facts.__file__).with_name("fact_words.toml").read_text(encoding="utf-8"))
CELLS = [(variant, aspect) for variant, aspects in WORDS.items() for aspect in aspects]


def quoted(variant: str, aspect: str) -> str:
    """All the lines of PEFT that stand beside a fact."""
    found = [c for c in cites.reference_cites(variant, aspect) if cites.source_of(c.alias) == "PEFT"]
    return "\n".join(line for c in found for line in c.lines)


@pytest.mark.parametrize(("variant", "aspect"), CELLS)
def test_the_words_that_a_fact_rests_on_are_quoted(variant, aspect):
    shown = quoted(variant, aspect)
    assert [word for word in WORDS[variant][aspect] if word not in shown] == []


def test_every_fact_of_peft_rests_on_some_words():
    assert set(CELLS) == {(v, a) for v, aspects in facts.facts().items() for a in aspects if v in WORDS}


def test_no_quote_is_longer_than_ten_lines():
    known = catalog.load()
    for variant in known.variants:
        for aspect in {c.aspect for c in known.cites if c.variant == variant}:
            assert all(len(c.lines) <= 10 for c in cites.reference_cites(variant, aspect))


SOURCE = '''"""The module."""


class Base:
    """Keeps it."""

    def scale(self, x, ready):
        """Scales by two."""
        if ready:
            y = 2 * x
        else:
            y = x
        return y


class Mine(Base):
    """Inherits it."""
'''


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_a_quote_begins_at_the_guard(source):
    found = cite_file(source, "Base.scale", "y .. y#2")
    assert [line.strip() for line in found.lines] == ["if ready:", "y = 2 * x", "else:", "y = x"]
    assert cite_file(source, "Base.scale", "y#2").lines == ("            y = x",)


def test_an_inherited_method_is_found(source):
    assert cite_file(source, "Mine.scale").start == cite_file(source, "Base.scale").start
    assert cite_file(source, "Mine.other").missing == "`Mine.other` was not found in mine.py"
    assert [words for _, words in docstrings(source, "Mine.scale")] == [
        "The module.",
        "Inherits it.",
        "Scales by two.",
    ]


def test_places_have_pages():
    (label, url), (other, none) = places(catalog.load(), "peft_lora_layer.py:L10-L12, gone.py:f (no lines)")
    assert (label, other, none) == ("peft_lora_layer.py:L10-L12", "gone.py:f (no lines)", None)
    assert url.endswith("lora/layer.py#L10-L12")


def test_another_release_is_linked_to(monkeypatch):
    monkeypatch.setattr("refs.quotes.installed_release", lambda reference: "0.20.0")
    assert "/blob/v0.20.0/" in places(catalog.load(), "peft_lora_layer.py:L10")[0][1]

"""Which docstrings state where dropout is applied, and which do not."""

from __future__ import annotations

import pytest

from oracles.variants.shared_mistakes import PLACES_IN_WORDS
from reports.judge.docstring_search import DocstringPart, stating


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("everything", "Dropout is applied to the entire input of the layer."),
        ("everything", "While training, dropout also reaches the frozen base layer."),
        ("update", "Dropout comes after B."),
        ("update", "dropout: the share of the low-rank path's output that is dropped."),
    ],
)
def test_a_place_that_is_stated(place: str, words: str) -> None:
    assert stating([DocstringPart("", 0, words)], PLACES_IN_WORDS[place])


@pytest.mark.parametrize("place", PLACES_IN_WORDS)
@pytest.mark.parametrize(
    "words",
    [
        "dropout: the share of the adapter's input that is dropped. The base layer is frozen.",
        "Dropout is not applied to the base path.",
        "Dropout of the branch's input, never of the whole layer.",
    ],
)
def test_what_states_no_other_place(place: str, words: str) -> None:
    assert stating([DocstringPart("", 0, words)], PLACES_IN_WORDS[place]) is None

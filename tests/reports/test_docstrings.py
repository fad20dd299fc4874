"""A docstring counts by what it says: a phrase in a sentence, not a word somewhere."""

from __future__ import annotations

import pytest

from harness.engine.described import docstring_of
from oracles.implementation import Implementation
from reports.judge.docstring_search import leaving_out, stating
from reports.judge.grouping import is_special
from reports.model import Claim, DocstringPart
from tests.subjects import wrapped


def parts(text: str) -> tuple[DocstringPart, ...]:
    return (DocstringPart("mine.py", 7, text),)


@pytest.mark.parametrize(
    ("text", "phrase", "says"),
    [
        ("The gradient flows through\nthe norm.", "flows through the norm", True),
        ("It says nothing about how the gradient flows through the norm.", "flows through the norm", False),
        ("That the gradient flows through the norm is not documented.", "flows through the norm", False),
        ("Takes steps of size two.", "eps", False),
        ("An eps is added.", "eps", True),
        ("[unclosed", "[unclosed", True),
    ],
)
def test_a_phrase_is_looked_for_in_a_sentence(text, phrase, says):
    assert (stating(parts(text), [phrase]) is not None) == says


@pytest.mark.parametrize(
    ("text", "option", "says"),
    [
        ("There is no dropout.", "dropout", True),
        ("dropout: the share of entries that are dropped", "dropout", False),
        ("There is no bias here. Dropout is applied to x.", "dropout", False),
        ("Says nothing about dropout.", "dropout", False),
        ("Gates outputs only; feed-forward is left out.", "feedforward", True),
        ("apply_GS is not there.", "gram_schmidt", True),
        ("Without Gram-Schmidt.", "gram_schmidt", True),
        ("fp16 and bf16 are refused.", "float16 base, bfloat16 base", True),
        ("fp16 is refused.", "float16 base, bfloat16 base", False),
        ("Works in float32 only.", "no", False),
        ("alpha = r: the update is B A as it stands.", "an alpha of one's own choice", True),
        ("mode='alpha_only', scaling='alpha_over_r'", "an alpha of one's own choice", False),
        (
            "Called as Layer(base, r=r, alpha=1.0, dropout=0.0).",
            "an alpha of one's own choice, dropout",
            False,
        ),
        ("Called as Layer(base, alpha=16).", "an alpha of one's own choice", False),
        ("It gates the input only.", "a gate on the output", True),
        ("The gate is not trained at first.", "a gate on the output", False),
        ("No input is too large.", "No", False),
    ],
)
def test_a_mode_is_left_out_where_a_sentence_says_so(text, option, says):
    assert (leaving_out(parts(text), option) is not None) == says


def test_a_statement_has_its_place():
    said = stating(parts("One.\n\nTwo is\nnot scaled. Three."), ["not scaled"])
    assert said is not None
    assert said.words == '"Two is not scaled." (`mine.py:L9`)'


def test_the_interfaces_docstring_is_not_the_subjects():
    """A subject without one says nothing; one that is derived from another subject inherits its words."""

    class Silent(wrapped.Library):
        pass

    class Bare(Implementation):
        def adapt(self, base, spec):
            raise NotImplementedError

    assert docstring_of(Bare) == ""
    assert docstring_of(Silent) == docstring_of(wrapped.Library) != ""


def test_what_is_not_offered_is_told_once():
    """A life that needs save and load is no gap of its own beside the aspect that lacks them."""
    claims = [
        Claim("c", "lora", aspect, check, "paper", "not_applicable", cause="not_offered", detail="save")
        for check, aspect in (("save_load.round_trip", "save_load"), ("lifecycle.saved", "lifecycle"))
    ]
    assert [is_special(c) for c in claims] == [True, False]

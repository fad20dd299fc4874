"""What a subject's docstring says, looked up by words."""

from __future__ import annotations

import re


def states(docstring: str, word: str) -> bool:
    """Whether a regular expression, or failing that the literal word, occurs in the docstring, across its lines."""
    docstring = " ".join(docstring.split())
    try:
        return re.search(word, docstring, re.IGNORECASE) is not None
    except re.error:
        return word.lower() in docstring.lower()


def names(docstring: str, option: str) -> bool:
    """Whether an option is named in it, however it is spelled: feed-forward, feed_forward and feedforward."""
    return _letters(option) in _letters(docstring)


def _letters(words: str) -> str:
    return re.sub(r"[\W_]", "", words.lower())

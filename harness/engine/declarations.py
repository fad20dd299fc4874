"""The subject's declared deviations: a TOML beside it, strict both ways (a stale declaration is an error).

[[deviation]]
check = "init.distribution"      # the check's id, or "aspect.*"
variant = "lora"
oracle = "peft"                  # an oracle of `--oracle`'s list, or "*"
reason = "one sentence"
docstring_words = ["Gaussian"]   # what the subject's docstring must say for it to count as documented

Searched are the docstring of the subject's class and those around the symbols that its `source` names.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from harness.engine.checks import CHECKS
from oracles import registry
from oracles.variants import VARIANTS
from reports.model import Declaration

LIMIT = 1 << 20
KEYS = {"check", "variant", "oracle", "reason", "docstring_words"}


class BadDeviations(Exception):
    """The file cannot be used; the text is one sentence."""


def load(path: Path, docstrings: dict[str, str]) -> tuple[Declaration, ...]:
    """The declarations in ``path``; ``docstrings``: variant -> the text its words are looked for in."""
    try:
        if path.stat().st_size > LIMIT:
            raise BadDeviations(f"{path} is larger than {LIMIT} bytes, expected a short TOML file")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, no TOML, a number too long
        raise BadDeviations(f"{path} cannot be read as TOML: {str(error)[:200]}") from error
    entries = document.get("deviation", [])
    if set(document) - {"deviation"} or not isinstance(entries, list):
        held = ", ".join(sorted(document))[:200]
        raise BadDeviations(f"{path} holds {held}; expected [[deviation]] tables only")
    return tuple(_declaration(entry, path, docstrings) for entry in entries)


def _declaration(entry: Any, path: Path, docstrings: dict[str, str]) -> Declaration:
    if not isinstance(entry, dict) or set(entry) != KEYS:
        given = str(sorted(entry) if isinstance(entry, dict) else entry)[:200]
        raise BadDeviations(f"a deviation in {path} has {given}, expected exactly {sorted(KEYS)}")
    words = entry["docstring_words"]
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and w for w in words):
        raise BadDeviations(
            f"docstring_words in {path} is {str(words)[:200]!r}, expected a non-empty list of words"
        )
    for key in sorted(KEYS - {"docstring_words"}):
        if not isinstance(entry[key], str):
            raise BadDeviations(f"{key} in {path} is {str(entry[key])[:200]}, expected text")
    _refuse_unknown(entry, path)
    text = " ".join(docstrings.get(entry["variant"], "").split()).lower()
    documented = all(" ".join(word.split()).lower() in text for word in words)
    return Declaration(
        entry["check"], entry["variant"], entry["oracle"], entry["reason"], tuple(words), documented, None
    )


def _refuse_unknown(entry: dict[str, str], path: Path) -> None:
    """A name that is not there would never be met: the declaration would go stale, or excuse nothing."""
    whole_aspects = {f"{c.info.aspect}.*" for c in CHECKS.values()}
    if entry["check"] not in CHECKS and entry["check"] not in whole_aspects:
        raise BadDeviations(f"check {entry['check']!r} in {path} does not exist")
    if entry["variant"] not in VARIANTS:
        raise BadDeviations(f"variant {entry['variant']!r} in {path} does not exist")
    known = [*registry.ids(), "*"]
    if entry["oracle"] not in known:
        raise BadDeviations(
            f"oracle {entry['oracle']!r} in {path} does not exist; expected one of {', '.join(known)}"
        )

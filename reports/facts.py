"""What the references do, as data (`facts.toml`): variant -> aspect -> source -> a short sentence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# Oracle -> who speaks through it, in the order of the table's columns.
SOURCES = {"peft": "PEFT", "author": "author", "paper": "equation"}


@cache
def facts() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """The whole table."""
    return tomllib.loads(Path(__file__).with_name("facts.toml").read_text(encoding="utf-8"))

"""The mutation tool: what it changes, what it leaves alone, and that nothing is argued about code that is gone."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from tests.mutants.__main__ import EQUIVALENT, ORACLES, SUBJECT
from tests.mutants.ask import ROOT
from tests.mutants.mutate import mutants

SOURCE = '''
"""A docstring is left alone."""
TABLE = {"a": 1}

def gain(m, norm, x):
    """So is this."""
    if norm > 0:
        raise ValueError("and a message")
    return (m / norm.detach()).T
'''


def kinds(line: int) -> set[str]:
    """What is done to one line of SOURCE."""
    return {m.kind for m in mutants("file.py", SOURCE) if m.line == line}


def test_what_is_changed() -> None:
    assert {"constant", "name changed"} <= kinds(3)
    assert {"comparison", "constant", "condition negated"} <= kinds(7)
    assert kinds(8) == {"statement removed"}
    assert kinds(9) == {"operator", "detach dropped", "transpose dropped"}


def test_words_for_people_are_left_alone() -> None:
    changed = [m.diff for m in mutants("file.py", SOURCE)]
    assert not [d for d in changed if "docstring" in d or "So is" in d]


def test_every_mutant_is_another_program() -> None:
    found = mutants("file.py", SOURCE)
    assert len({m.source for m in found} | {SOURCE}) == len(found) + 1
    for mutant in found:
        compile(mutant.source, "mutant", "exec")


@pytest.mark.parametrize("file", [*SUBJECT, *ORACLES])
def test_what_is_argued_equivalent_is_there(file: str) -> None:
    argued = defaultdict(set)
    for entry in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        assert entry["because"]
        argued[entry["file"]].add(entry["diff"])
    there = {m.diff for m in mutants(file, (ROOT / file).read_text(encoding="utf-8"))}
    assert not argued[file] - there

"""What PEFT itself fails: the table is made from an audit of it, and a finding says where PEFT does the same."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from reports import reference_fails
from reports.judge.judgement import judge
from tests.reports.runs import FORWARD, claim, diagnosis, no_mode, run


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The table of a reference that fails one check by one mistake, another by a quantity, and lacks a mode."""
    failing = claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.a"))
    unnamed = claim("init.identity", outcome="fail")
    made = judge(run(failing, unnamed, claim("dropout.active"), no_mode()))
    named = dataclasses.replace(made.run.subject, name="peft", version="9.9")
    words = reference_fails.table_of(
        dataclasses.replace(made, run=dataclasses.replace(made.run, subject=named))
    )
    (tmp_path / "fails.toml").write_text(words, encoding="utf-8")
    monkeypatch.setattr(reference_fails, "TABLE", tmp_path / "fails.toml")
    reference_fails._table.cache_clear()
    yield tomllib.loads(words)
    reference_fails._table.cache_clear()


def test_what_fails_is_in_the_table_and_nothing_else(table):
    assert [(e["check"], e["due_to"]) for e in table["peft"]["fails"]] == [
        ("forward.modes", "feedforward"), (FORWARD, "lora.a"), ("init.identity", "contribution"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.a")), True),
        (claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.b")), False),
        (claim(FORWARD, outcome="fail"), False),
        (claim(FORWARD, "dora", outcome="fail", diagnosis=diagnosis("lora.a")), False),
        (claim("init.identity", outcome="fail"), True),
        (no_mode(), True),
        (no_mode(option="dropout"), False),
    ],
)
def test_a_finding_says_that_the_reference_does_the_same(table, asked, same):
    (finding,) = judge(run(asked)).findings
    assert finding.also_fails == (("PEFT 9.9",) if same else ())


def test_the_committed_table_is_of_peft():
    committed = tomllib.loads(reference_fails.TABLE.read_text(encoding="utf-8"))
    assert list(committed) == ["peft"]
    assert any(
        e["check"] == "save_load.other_base" and e["variant"] == "pissa" for e in committed["peft"]["fails"]
    )

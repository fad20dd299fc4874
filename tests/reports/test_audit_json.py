"""`audit.json`: schema 2, valid JSON whatever a subject hands over, refused where it is not what it says."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.errors import (
    Incomplete,
    Malformed,
    OtherSchema,
    Oversized,
    ReportsError,
    ShardOnly,
    UnreadableFile,
)
from reports.judge.judgement import judge
from reports.model import Audit, PriorFinding, Witness
from reports.render import markdown
from reports.store import audit_json
from tests.reports.runs import FORWARD, claim, declaration, diagnosis, plan, prior, run

TOP = [
    "schema_version", "generator", "subject", "oracles", "environment", "profile", "claims", "findings",
    "verdicts", "reference_disagreements", "complete",
]  # fmt: skip


def audit() -> Audit:
    claims = (
        claim(FORWARD, "delora", outcome="fail", diagnosis=diagnosis()),
        claim("save_load.round_trip", "delora", outcome="unverified", reason="not synced"),
        claim("init.identity", "lora"),
        claim("dtype.output", "lora", outcome="declared"),
    )
    known = PriorFinding("P1", "quoted", checks=(FORWARD,))
    return judge(run(*claims, declarations=(declaration("dtype.output"),)), prior("delora", "Partial", known))


def document(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def written(tmp_path) -> Path:
    audit_json.write(audit(), tmp_path / "audit.json")
    return tmp_path / "audit.json"


def test_the_keys_are_those_of_the_design(written):
    data = document(written)
    assert list(data) == TOP
    assert list(data["claims"][0]) == [
        "id", "variant", "aspect", "check", "oracle", "outcome", "ratio", "threshold", "examples", "witness",
        "diagnosis", "reason", "cause", "detail", "mode", "further",
    ]  # fmt: skip
    assert list(data["findings"][0]) == [
        "id", "variant", "aspect", "tag", "new", "overturn", "severity", "title", "failure_mode", "claims",
        "reference_cites", "subject_cites", "agree", "differ", "not_asked",
        "mistake", "heard", "stated", "also_fails",
    ]  # fmt: skip
    assert list(data["verdicts"]["delora"]) == [
        "prior", "verdict", "reason", "new_bugs", "doc_gaps", "verified", "applicable",
    ]  # fmt: skip


def test_the_published_schema_is_one_and_accepts_the_document(written):
    schema = json.loads(audit_json.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document(written), schema)


def test_what_was_written_is_read_back(written):
    again = audit_json.read(written)
    assert audit_json.dumps(again) == written.read_text()
    assert markdown.render(again) == markdown.render(audit())


def test_the_same_run_gives_the_same_bytes_in_any_order():
    claims = audit().run.claims
    forwards, backwards = (judge(run(*order)) for order in (claims, claims[::-1]))
    assert audit_json.dumps(forwards) == audit_json.dumps(backwards)
    assert markdown.render(forwards) == markdown.render(backwards)


def test_numbers_are_rounded_and_words_where_they_are_none():
    ratios = 1.23456, math.nan, math.inf, -math.inf
    claims = [claim(FORWARD, oracle=f"o{n}", ratio=r) for n, r in enumerate(ratios)]
    data = json.loads(audit_json.dumps(judge(run(*claims))))
    assert [c["ratio"] for c in data["claims"]] == [1.23, "nan", "inf", "-inf"]


def test_no_line_of_a_reference_is_in_the_file(written):
    cites = [c for f in document(written)["findings"] for c in f["reference_cites"]]
    assert cites
    assert not any(c["lines"] for c in cites)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


HOSTILE = {
    "unprintable": Unprintable(),
    "surrogate": "\ud800",
    "escape": "\x1b[31m",
    "long": "x" * 10**6,
    "huge": 10**5000,
    "odd keys": {1: {2: object()}},
    "bytes": b"\xff",
    "deep": [[[[[[[[1]]]]]]]],
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_a_subject_hands_over_is_valid_json(value, tmp_path):
    case = Witness(
        {"value": value, "loop": [value]}, "output", "1", str(value) if isinstance(value, str) else "2"
    )
    made = judge(run(claim(FORWARD, outcome="fail", witness=case)))
    audit_json.write(made, tmp_path / "a.json")
    raw = (tmp_path / "a.json").read_bytes()
    assert raw.isascii()
    assert not any(b < 32 and b != 10 for b in raw)
    assert markdown.render(audit_json.read(tmp_path / "a.json")) == markdown.render(made)


def test_without_complete_it_is_refused(written):
    data = document(written)
    del data["complete"]
    written.write_text(json.dumps(data))
    with pytest.raises(Incomplete, match="did not reach its end"):
        audit_json.read(written)


@pytest.mark.parametrize("version", [0, 3, "1", None, True, [1]])
def test_another_schema_version_is_refused(written, version):
    written.write_text(json.dumps({**document(written), "schema_version": version}))
    with pytest.raises(OtherSchema, match="only 1 and 2 can be read"):
        audit_json.read(written)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "{",
        "[" * 100_000,
        '{"schema_version": 2, "complete": true}',
        "NaN",
        '{"a": Infinity}',
    ],
)
def test_what_is_no_audit_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Malformed):
        audit_json.read(tmp_path / "a.json")


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(Malformed, match="UTF-8"):
        audit_json.read(tmp_path / "latin.json")
    for name in ("fifo.json", "missing.json", "."):
        with pytest.raises(UnreadableFile):
            audit_json.read(tmp_path / name)
    monkeypatch.setattr(audit_json, "LARGEST", 5)
    with pytest.raises(Oversized):
        audit_json.read(tmp_path / "latin.json")


@pytest.mark.parametrize("key", TOP[1:-1])
def test_a_missing_part_is_refused(written, key):
    data = document(written)
    del data[key]
    written.write_text(json.dumps(data))
    with pytest.raises(Malformed, match=key):
        audit_json.read(written)


def test_claims_twice_and_findings_on_nothing_are_refused(written):
    data = document(written)
    written.write_text(json.dumps({**data, "claims": data["claims"] * 2}))
    with pytest.raises(Malformed, match="twice"):
        audit_json.read(written)
    written.write_text(json.dumps({**data, "claims": data["claims"][:1]}))
    with pytest.raises(Malformed, match="not there"):
        audit_json.read(written)


def test_a_plan_that_nothing_describes_is_refused(tmp_path):
    asked, left = claim(FORWARD), claim("init.identity")
    audit_json.write(judge(run(asked, planned=plan(asked, left), shard="1/2")), tmp_path / "a.json")
    data = document(tmp_path / "a.json")
    context = data["generator"]["context"]
    assert context["planned"] == [asked.id, left.id]
    assert context["missing"] == [
        {"check": "init.identity", "variant": "lora", "mode": None, "oracle": "peft"}
    ]
    context["missing"] = []
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(Malformed, match="neither `claims` nor `missing`"):
        audit_json.read_shard(tmp_path / "a.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_other_json_is_refused_by_name(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_text(json.dumps({"schema_version": 2, "complete": True, "claims": value}))
    with pytest.raises(ReportsError):
        audit_json.read(path)


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    target = tmp_path / "audit.json"
    target.write_text("before")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        audit_json.write(audit(), target)
    assert [p.name for p in tmp_path.iterdir()] == ["audit.json"]
    assert target.read_text() == "before"


def test_a_partial_run_is_kept_and_marked(tmp_path):
    asked, planned = claim(FORWARD), plan(claim(FORWARD), claim("init.identity"))
    audit_json.write_partial(run(asked, planned=planned), tmp_path / "a.json")
    with pytest.raises(Incomplete):
        audit_json.read(tmp_path / "a.json")
    review = markdown.render(audit_json.read_partial(tmp_path / "a.json"))
    assert "**INCOMPLETE.**" in review
    assert "`init.identity[lora-peft]`" in review
    assert "1 of 2 claims verified, 1 missing" in review


def test_a_complete_document_with_missing_claims_is_refused(tmp_path):
    audit_json.write(
        judge(run(claim(FORWARD), planned=plan(claim("init.identity")), shard="1/2")), tmp_path / "a.json"
    )
    with pytest.raises(ShardOnly, match="1/2"):
        audit_json.read(tmp_path / "a.json")

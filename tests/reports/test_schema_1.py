"""Documents of schema 1 are read as if they had the fields of schema 2, and say the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reports.errors import Malformed
from reports.judge.judgement import judge
from reports.render import markdown
from reports.store import audit_json
from reports.store.diff import render
from reports.store.prior_file import load_prior
from reports.store.schema_1 import lifted
from tests.reports.runs import FORWARD, agreeing, claim, diagnosis, no_mode, plan, run

PREFIX = {"mode_missing": "mode missing: ", "not_offered": "not offered: save_load: "}


def lowered(document: dict[str, Any]) -> dict[str, Any]:
    """A document of schema 2 as schema 1 had it."""
    old = copy.deepcopy(document)
    old["schema_version"] = 1
    del old["subject"]["environment"], old["generator"]["context"]["missing"]
    del old["generator"]["context"]["docstring_parts"]
    for one in old["claims"]:
        cause = one.pop("cause")
        if one["outcome"] == "not_applicable":
            one["reason"] = PREFIX.get(cause, "") + one["reason"]
        del one["detail"], one["mode"], one["further"]
        for key in ("agree", "differ", "not_asked", "heard"):
            if one["witness"]:
                del one["witness"][key]
        if one["diagnosis"]:
            for key in ("source", "remedy", "place"):
                del one["diagnosis"][key]
    for one in old["findings"]:
        for key in ("agree", "differ", "not_asked", "mistake", "heard", "stated", "also_fails"):
            del one[key]
    return old


def document() -> dict[str, Any]:
    own = diagnosis("dtype.single", source="check")
    crash = "lora_lite raised IndexError in adapt: row 3"
    claims = (
        claim(FORWARD, outcome="fail", diagnosis=diagnosis()),
        agreeing(FORWARD),
        claim("dtype.output", outcome="fail", diagnosis=own),
        claim("init.identity", outcome="error", reason=crash, cause="raised", detail=crash.replace("3", "#")),
        no_mode("forward.modes", "ia3"),
        claim("forward.modes", mode="gram_schmidt"),
        claim("save_load.round_trip", outcome="not_applicable", reason="lora_lite offers no save",
              cause="not_offered", detail="save"),
        claim("dropout.active", outcome="unverified", reason="not synced", cause="oracle_silent"),
    )  # fmt: skip
    return json.loads(audit_json.dumps(judge(run(*claims))))


@pytest.fixture
def both(tmp_path) -> tuple[Path, Path]:
    """The same audit in schema 1 and in schema 2."""
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    new.write_text(json.dumps(document()))
    old.write_text(json.dumps(lowered(document())))
    return old, new


def test_it_is_what_schema_1_was():
    jsonschema.validate(lowered(document()), json.loads(audit_json.SCHEMAS[1].read_text()))


def test_it_is_lifted_whole():
    again = lifted(lowered(document()))
    jsonschema.validate(again, json.loads(audit_json.SCHEMA.read_text()))
    now = document()
    now["generator"]["context"][
        "docstring_parts"
    ] = {}  # schema 1 kept the docstrings' text without its places
    assert again == now


def test_it_says_the_same_and_is_the_same_prior(both):
    old, new = (audit_json.read(path) for path in both)
    assert markdown.render(old) == markdown.render(new)
    assert render(old, new) == ("lora_lite 0.1.0\nno change\n", False)
    priors = [load_prior(path).variants for path in both]
    assert priors[0] == priors[1]


def test_it_is_judged_the_same(both):
    old, new = (judge(audit_json.read(path).run) for path in both)
    assert old.findings == new.findings
    assert old.verdicts == new.verdicts


def test_a_plan_is_read_from_its_ids(tmp_path):
    asked, left = claim(FORWARD), claim("forward.modes", "ia3", "author", mode="feed_forward")
    audit_json.write_partial(run(asked, planned=plan(asked, left)), tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    del data["generator"]["context"]["missing"], data["generator"]["context"]["docstring_parts"]
    del data["subject"]["environment"]
    for one in data["claims"]:
        del one["cause"], one["detail"], one["mode"], one["further"]
    (tmp_path / "a.json").write_text(json.dumps({**data, "schema_version": 1}))
    assert audit_json.read_partial(tmp_path / "a.json").run.planned == plan(asked, left)
    data["generator"]["context"]["planned"].append("what?")
    (tmp_path / "a.json").write_text(json.dumps({**data, "schema_version": 1}))
    with pytest.raises(Malformed, match=r"'what\?', expected check\[variant-oracle\]"):
        audit_json.read_partial(tmp_path / "a.json")


@pytest.mark.parametrize("extra", [{"cause": None}, {"mode": None}])
def test_a_field_of_schema_2_is_none_of_schema_1(tmp_path, extra):
    data = lowered(document())
    data["claims"][0] |= extra
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(Malformed, match="breaks schema 1"):
        audit_json.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("outcome", "sentence", "cause", "detail"),
    [
        ("not_applicable", "the references disagree here (hra.output_side): judged against PEFT",
         "references_disagree", "hra.output_side"),
        ("not_applicable", "mode missing: gram_schmidt is not offered", "mode_missing", "gram_schmidt"),
        ("not_applicable", "not offered: save_load: it offers no load", "not_offered", "load"),
        ("not_applicable", "round1 offers no adapt_model", "not_offered", "adapt_model"),
        ("not_applicable", "it offers no ordinary LoRA: no", "no_variant", None),
        ("not_applicable", "the mode is ignored, which shapes.modes reports", "told_elsewhere", None),
        ("not_applicable", "the reference refuses to start PiSSA from a float64 base", "outside", None),
        ("unverified", "broken wrapper: Adapted.slots is empty: there is nothing to audit", "wrapper", None),
        ("unverified", "the subject refused every case", "refused_all", None),
        ("unverified", "the audit itself failed: KeyError: 'A'", "audit_failed", "KeyError"),
        ("unverified", "the oracle refused: paper raised ValueError in adapt: no", "oracle_refused", None),
        ("unverified", "the subject has no slot 'A' of the canonical shape", "no_slot", "'A' of the canonical shape"),
        ("unverified", "hra/author is absent: not synced", "oracle_silent", None),
        ("error", "lib raised ValueError in adapt_model of llama: row 12", "raised",
         "lib raised ValueError in adapt_model of #: row #"),
        ("error", "lib answers differently to the same call", "unsteady", "lib answers differently to the same call"),
        ("error", "lib hangs on a small layer: no answer within 60 s", "hangs",
         "lib hangs on a small layer: no answer within # s"),
        ("error", "the subject changed torch's gradient mode from True to False and left it so", "state_changed",
         "the subject changed torch's gradient mode from True to False and left it so"),
        ("error", "lib: module(x) returned NoneType, expected a Tensor", "bad_answer",
         "lib: module(x) returned NoneType, expected a Tensor"),
        ("fail", "output: expected 1, got 2", None, None),
        ("pass", "", None, None),
    ],
)  # fmt: skip
def test_every_sentence_of_schema_1_has_a_cause(outcome, sentence, cause, detail):
    data = lowered(document())
    one = {**data["claims"][0], "outcome": outcome, "reason": sentence or None}
    (again,) = lifted({**data, "claims": [one], "findings": []})["claims"]
    assert (again["cause"], again["detail"]) == (cause, detail)

"""Each rule of the verdict table: a case where it fires, and one where it keeps quiet."""

from __future__ import annotations

import io

import pytest

from reports.judge.judgement import audit_exit_code, judge
from reports.model import Claim
from reports.render.console import Console
from tests.reports.runs import FORWARD, agreeing, claim, declaration, diagnosis, no_mode, plan, prior, run


def verdict(*claims: Claim, **more: object) -> str:
    return judge(run(*claims, **more)).verdicts[claims[0].variant].verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("check", ["init.identity", "step0.gradients", FORWARD, "training.sgd"])
def test_critical(check):
    assert verdict(claim(check, outcome="fail"), claim(check, oracle="paper", outcome="fail")) == "Buggy"
    assert verdict(claim(check, outcome="fail"), agreeing(check)) == "Faithful-with-doc-gap"
    assert verdict(claim(check), claim(check, oracle="paper")) == "Faithful"


@pytest.mark.parametrize("check", ["save_load.round_trip", "dropout.active"])
def test_major(check):
    assert verdict(claim(check, outcome="fail")) == "Partial"
    assert verdict(claim(check)) == "Faithful"


def test_major_a_mode_is_missing():
    assert verdict(claim(FORWARD), no_mode()) == "Partial"
    assert (
        verdict(claim(FORWARD), claim("forward.modes", outcome="not_applicable", reason="no modes"))
        == "Faithful"
    )


def test_major_the_gradient_differs_by_choice():
    declared = {"declarations": (declaration("step0.gradients"),)}
    assert verdict(claim("step0.gradients", outcome="declared"), **declared) == "Partial"
    assert verdict(claim("step0.gradients"), **declared) == "Faithful"


def test_nothing_is_faithful_of_which_nothing_was_seen():
    refused = claim(FORWARD, outcome="not_applicable", reason="not offered")
    assert verdict(refused, claim("shapes.canonical")) == "Partial"
    assert verdict(claim(FORWARD), claim("shapes.canonical")) == "Faithful"


@pytest.mark.parametrize("reason", ["not synced", "the audit itself failed"])
def test_major_an_aspect_is_unverified(reason):
    assert verdict(claim(FORWARD), claim("init.identity", outcome="unverified", reason=reason)) == "Partial"


def test_minor_is_what_the_docstring_does_not_state():
    form = diagnosis(
        "lora.gaussian_a", agrees_with="the paper", documented_by=("gaussian",), severity="minor"
    )
    failing = claim("init.identity", outcome="fail", diagnosis=form)
    assert verdict(failing, claim(FORWARD)) == "Faithful-with-doc-gap"
    # Documented, but a claim is not verified until it is declared: Faithful would say more than was seen.
    assert verdict(failing, claim(FORWARD), docstring="Gaussian A") == "Faithful-with-doc-gap"
    declared = {"declarations": (declaration("init.identity"),)}
    assert verdict(claim("init.identity", outcome="declared"), claim(FORWARD), **declared) == "Faithful"


def test_the_worst_decides_and_is_named():
    claims = (
        claim("dtype.output", outcome="fail"),
        claim(FORWARD, outcome="fail"),
        claim("dropout.active", outcome="fail"),
    )
    judged = judge(run(*claims)).verdicts["lora"]
    assert judged.verdict == "Buggy"
    assert judged.reason == "the forward pass agrees with no reference (D1: The output differs)"


def test_what_is_skipped_never_raises_a_verdict():
    skipped = claim(FORWARD, outcome="not_applicable", reason="absent")
    judged = judge(run(skipped)).verdicts["lora"]
    assert (judged.verdict, judged.verified, judged.applicable) == ("Partial", 0, 0)


def test_counts():
    claims = (
        claim(FORWARD),
        claim("init.identity", outcome="declared"),
        claim("dropout.active", outcome="not_applicable", reason="none"),
        claim("save_load.round_trip", outcome="fail"),
    )
    judged = judge(run(*claims), prior("lora", "Partial")).verdicts["lora"]
    assert (judged.verified, judged.applicable, judged.new_bugs, judged.doc_gaps) == (2, 3, 1, 1)
    assert judged.prior == "Partial"


def exit_code(*claims: Claim, **more: object) -> int:
    return audit_exit_code(judge(run(*claims, **more)))  # type: ignore[arg-type]


@pytest.mark.parametrize("outcome", ["fail", "unverified", "error"])
def test_exit_1(outcome):
    assert exit_code(claim(FORWARD, outcome=outcome, reason="because")) == 1


@pytest.mark.parametrize("outcome", ["pass", "declared", "not_applicable"])
def test_exit_0(outcome):
    assert exit_code(claim("init.identity"), claim(FORWARD, outcome=outcome, reason="because")) == 0


def test_a_run_that_verifies_nothing_fails():
    nothing = run(claim(FORWARD, outcome="not_applicable", reason="no adapters", cause="no_variant"))
    assert audit_exit_code(judge(nothing)) == 1
    stream = io.StringIO()
    Console(stream).summary(judge(nothing))
    assert "no claim could be verified" in stream.getvalue()
    assert "every applicable claim" not in stream.getvalue()


@pytest.mark.parametrize(("occurred", "code"), [(True, 0), (None, 0), (False, 1)])
def test_a_stale_declaration_fails_the_run(occurred, code):
    assert exit_code(claim(FORWARD), declarations=(declaration(FORWARD, occurred=occurred),)) == code


def test_a_missing_mode_fails_the_run_unless_declared():
    missing = no_mode()
    assert exit_code(missing) == 1
    assert exit_code(missing, declarations=(declaration("forward.modes"),)) == 0


def test_a_missing_claim_fails_the_run():
    assert exit_code(claim(FORWARD), planned=plan(claim(FORWARD), claim("init.identity"))) == 1


def test_faithful_names_what_is_documented():
    declared = claim("dtype.output", outcome="declared")
    judged = judge(run(claim(FORWARD), declared, declarations=(declaration("dtype.output"),))).verdicts[
        "lora"
    ]
    assert judged.reason == "2 of 2 claims verified; every difference is documented (D1)"
    assert judge(run()).verdicts["lora"].reason == "2 of 2 claims verified"

"""One defect, one finding; tagged by who agrees, by what is documented, and by how bad it is."""

from __future__ import annotations

import dataclasses

from reports.judge.judgement import audit_exit_code, judge
from reports.model import ALONE, OF_DTYPES, Finding, PriorFinding, Run
from tests.reports.runs import (
    CHECKS,
    FORWARD,
    agreeing,
    claim,
    declaration,
    diagnosis,
    info,
    no_mode,
    prior,
    run,
)

ATTACHED = {"severity": "major", "documented_by": ("flows through the norm",)}


def found(made: Run, *args: object) -> tuple[Finding, ...]:
    return judge(made, *args).findings  # type: ignore[arg-type]


def only(made: Run, *args: object) -> Finding:
    (finding,) = found(made, *args)
    return finding


def test_nothing_is_found_where_everything_holds():
    assert found(run()) == ()


def test_the_same_mistake_in_several_checks_is_one_finding():
    checks = ("init.identity", FORWARD, "dropout.active")
    finding = only(run(*(claim(c, outcome="fail", diagnosis=diagnosis()) for c in checks)))
    assert len(finding.claims) == 3
    assert finding.title == diagnosis().summary
    assert finding.failure_mode == diagnosis().failure_mode


def test_two_mistakes_are_two_findings():
    a = claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.a"))
    b = claim("dropout.active", outcome="fail", diagnosis=diagnosis("lora.b"))
    assert [f.id for f in found(run(a, b))] == ["D1", "D2"]


def test_one_check_against_several_oracles_is_one_finding():
    finding = only(run(*(claim(FORWARD, oracle=o, outcome="fail") for o in ("peft", "paper"))))
    assert (finding.tag, finding.severity, len(finding.claims)) == ("BUG", "critical", 2)
    assert finding.title == "The output differs."


def test_an_undiagnosed_claim_is_no_part_of_what_another_names():
    pair = (
        claim(FORWARD, outcome="fail", diagnosis=diagnosis()),
        claim(FORWARD, oracle="paper", outcome="fail"),
    )
    assert [len(f.claims) for f in found(run(*pair))] == [1, 1]


def test_a_claim_that_shows_two_mistakes_is_in_the_finding_of_each():
    a, b = diagnosis("lora.a"), diagnosis("lora.b")
    both = claim(FORWARD, outcome="fail", diagnosis=a, further=(b,))
    alone = claim("dropout.active", outcome="fail", diagnosis=b)
    by_mistake = {f.mistake: f for f in found(run(both, alone))}
    assert by_mistake["lora.a"].claims == (both.id,)
    assert by_mistake["lora.b"].claims == (alone.id, both.id)  # who names it before any other comes first


def test_a_consequence_joins_only_where_all_that_it_follows_is_explained():
    a, b = diagnosis("lora.a"), diagnosis("lora.b")
    parent = claim(FORWARD, outcome="fail", diagnosis=a, further=(b,))
    child = claim("training.sgd", outcome="fail")
    assert {f.mistake: len(f.claims) for f in found(run(parent, child))} == {"lora.a": 2, "lora.b": 1}
    split = info("training.sgd", "critical", "SGD ends elsewhere.", "", FORWARD, "init.identity")
    parents = claim(FORWARD, outcome="fail", diagnosis=a), claim("init.identity", outcome="fail", diagnosis=b)
    made = run(*parents, child, checks={**CHECKS, "training.sgd": split})
    assert {f.mistake: len(f.claims) for f in found(made)} == {
        "lora.a": 2,
        "lora.b": 1,
    }  # both are known by name
    parents = parents[0], claim("init.identity", outcome="fail")
    made = run(*parents, child, checks={**CHECKS, "training.sgd": split})
    assert "SGD ends elsewhere." in [f.title for f in found(made)]


def test_what_fails_by_a_dtype_is_explained_by_dtypes_alone():
    follows = {**CHECKS, "merge.half": info("merge.half", "major", "", "", FORWARD)}
    wrong = claim(FORWARD, outcome="fail", diagnosis=diagnosis())
    assert len(found(run(wrong, claim("merge.half", outcome="fail"), checks=follows))) == 1
    assert len(found(run(wrong, claim("merge.half", outcome="fail", detail=OF_DTYPES), checks=follows))) == 2


def test_what_is_wrong_by_itself_takes_with_it_what_follows_it_first():
    follows = {
        **CHECKS,
        "merge.weight": info("merge.weight", "critical", "", "", FORWARD),
        "lifecycle.unmerge": info("lifecycle.unmerge", "major", "", "", "merge.weight", FORWARD),
    }
    wrong = claim(FORWARD, outcome="fail", diagnosis=diagnosis())
    child = claim("lifecycle.unmerge", outcome="fail")
    told = found(run(wrong, claim("merge.weight", outcome="fail", detail=ALONE), child, checks=follows))
    assert sorted(len(f.claims) for f in told) == [1, 2]
    told = found(run(wrong, claim("merge.weight", outcome="fail"), child, checks=follows))
    assert [len(f.claims) for f in told] == [3]


def test_a_models_gradient_follows_from_a_wrong_gradient_and_its_logits_from_what_is_told_of_all():
    follows = {
        "init.residual": info("init.residual", "major", "The residual differs.", ""),
        "forward.gradients": info("forward.gradients", "critical", "A gradient differs.", ""),
        "targets.model_forward": info(
            "targets.model_forward", "critical", "The model.", "", "init.residual", "forward.gradients"
        ),
    }
    parents = [claim(c, outcome="fail") for c in ("init.residual", "forward.gradients")]
    model = claim("targets.model_forward", outcome="fail")
    for what, beside in (("gradient of q A", "forward.gradients"), ("logits", None)):
        child = dataclasses.replace(model, witness=dataclasses.replace(model.witness, quantity=what))
        told = found(run(*parents, child, checks={**CHECKS, **follows}))
        (own,) = [f for f in told if child.id in f.claims]
        assert own.claims == ((claim(beside).id, child.id) if beside else (child.id,))


def test_nothing_follows_a_matter_of_taste():
    own = diagnosis("forward.guard", source="check", severity="minor")
    minor = claim(FORWARD, outcome="fail", diagnosis=own)
    assert len(found(run(minor, claim("training.sgd", outcome="fail")))) == 2


def test_a_finding_is_as_bad_as_its_worst_member():
    mild = claim("dropout.active", outcome="fail", diagnosis=diagnosis())
    grave = claim("init.identity", outcome="fail", diagnosis=diagnosis())
    assert only(run(mild)).severity == "major"
    assert only(run(mild, grave)).severity == "critical"
    follows = info("init.identity", "critical", "", "", "dropout.active")
    undiagnosed = claim("init.identity", outcome="fail")
    assert only(run(mild, undiagnosed, checks={**CHECKS, "init.identity": follows})).severity == "critical"


def test_what_fails_by_another_mistake_first_is_as_bad_as_that_one():
    a, b = diagnosis("lora.a"), diagnosis("lora.b")
    grave = claim("init.identity", outcome="fail", diagnosis=a, further=(b,))
    mild = claim("dropout.active", outcome="fail", diagnosis=b)
    assert {f.mistake: f.severity for f in found(run(grave, mild))} == {
        "lora.a": "critical",
        "lora.b": "major",
    }
    assert {f.mistake: f.severity for f in found(run(grave))} == {"lora.a": "critical", "lora.b": "critical"}


def test_a_crash_takes_no_other_claim_with_it():
    why = {"reason": "lora_lite raised IndexError: no (at a.py:L3)", "cause": "raised"}
    crash = claim(FORWARD, outcome="error", detail="IndexError at a.py:L3", **why)
    finding, other = found(run(crash, claim("training.sgd", outcome="fail")))
    assert (finding.title, finding.claims) == (why["reason"], (crash.id,))
    assert "gets this exception" in finding.failure_mode
    assert other.title == "SGD ends elsewhere."


def test_the_wrapper_is_not_the_library():
    why = {"reason": "KeyError: 'A' (at mine.py:L7)", "cause": "wrapper", "detail": "KeyError at mine.py:L7"}
    made = run(claim("init.identity"), claim(FORWARD, outcome="unverified", **why))
    finding = only(made)
    assert (finding.tag, finding.severity) == ("OK-undoc", "major")
    assert finding.title.startswith("The subject's own file fails")
    assert judge(made).verdicts["lora"].verdict == "Partial"


def test_the_audit_s_own_mistake_is_no_finding():
    why = {"reason": "the audit itself failed: KeyError: 1", "cause": "audit_failed", "detail": "KeyError"}
    made = judge(run(claim("init.identity"), claim(FORWARD, outcome="unverified", **why)))
    assert made.findings == ()
    assert (made.verdicts["lora"].verdict, audit_exit_code(made)) == ("Partial", 3)


def test_a_check_that_follows_another_failing_one_joins_it():
    claims = [claim(c, outcome="fail") for c in (FORWARD, "training.sgd", "step0.gradients", "dtype.output")]
    finding = only(run(*claims))
    assert finding.aspect == "forward"
    assert len(finding.claims) == 4


def test_a_check_that_follows_one_that_holds_stands_alone():
    claims = claim(FORWARD), claim("training.sgd", outcome="fail")
    assert only(run(*claims)).aspect == "training"


def test_a_failure_against_another_oracle_is_not_explained():
    claims = (
        claim(FORWARD, oracle="author", outcome="fail"),
        agreeing(FORWARD, oracle="peft"),
        claim("training.sgd", oracle="peft", outcome="fail"),
    )
    assert [f.tag for f in found(run(*claims))] == ["BUG", "OK-undoc"]


def test_findings_are_ordered_by_severity_then_aspect():
    checks = ("dtype.output", "save_load.round_trip", FORWARD, "init.identity", "shapes.canonical")
    claims = [claim(c, outcome="fail") for c in checks]
    info = {k: dataclasses.replace(v, follows=()) for k, v in run().checks.items()}
    assert [f.aspect for f in found(run(*claims, checks=info))] == [
        "init", "forward", "shapes", "save_load", "dtype",
    ]  # fmt: skip


def test_who_agrees_with_one_reference_has_no_bug():
    finding = only(run(claim(FORWARD, outcome="fail"), agreeing(FORWARD)))
    assert (finding.tag, finding.severity) == ("OK-undoc", "minor")


def test_agreeing_where_the_references_do_not_differ_is_an_accident_of_the_cases():
    finding = only(run(claim(FORWARD, outcome="fail"), claim(FORWARD, oracle="author")))
    assert (finding.tag, finding.severity) == ("BUG", "critical")


def test_agreement_in_one_mode_does_not_excuse_another():
    failing = claim(FORWARD, outcome="fail", mode="gram_schmidt")
    assert only(run(failing, agreeing(FORWARD, oracle="paper"))).tag == "BUG"


def test_a_form_that_some_reference_has_is_no_bug():
    other = diagnosis(
        "lora.gaussian_a", agrees_with="the paper", documented_by=("gaussian",), severity="minor"
    )
    failing = claim("init.identity", outcome="fail", diagnosis=other)
    said = only(run(failing, docstring="A is Gaussian, as in the paper."))
    unsaid = only(run(failing, docstring="A is random."))
    assert (said.tag, said.severity) == ("OK-doc", "none")
    assert (unsaid.tag, unsaid.severity) == ("OK-undoc", "minor")


def test_a_documented_choice_keeps_the_severity_of_its_mistake():
    failing = claim(
        "step0.gradients", "dora", outcome="fail", diagnosis=diagnosis("dora.norm_attached", **ATTACHED)
    )
    said = only(run(failing, docstring="The gradient flows through the norm."))
    unsaid = only(run(failing))
    assert (said.tag, said.severity) == ("OK-doc", "major")
    assert (unsaid.tag, unsaid.severity) == ("BUG", "critical")


def test_words_that_are_no_regular_expression_are_taken_literally():
    other = diagnosis(agrees_with="the author", documented_by=("[unclosed",))
    assert only(run(claim(FORWARD, outcome="fail", diagnosis=other), docstring="[unclosed")).tag == "OK-doc"


def test_an_error_is_a_bug_with_its_reason():
    finding = only(run(claim(FORWARD, outcome="error", reason="lora_lite raised ValueError: no")))
    assert (finding.tag, finding.severity) == ("BUG", "critical")
    assert "raised ValueError: no" in finding.title


def test_a_context_that_is_refused_is_less_than_one_that_is_answered_wrongly():
    asked = info("contexts.autocast", "critical", "", "")
    for outcome, severity in (("error", "major"), ("fail", "critical")):
        made = run(claim(asked.id, outcome=outcome, reason="raised"), checks={**CHECKS, asked.id: asked})
        assert only(made).severity == severity


def test_the_same_error_everywhere_is_one_finding():
    claims = [
        claim(c, outcome="error", reason=f"raised at row {n}", cause="raised", detail="IndexError at row #")
        for n, c in enumerate((FORWARD, "init.identity"))
    ]
    assert len(only(run(*claims)).claims) == 2
    other = claim("dropout.active", outcome="error", reason="no", cause="raised", detail="ValueError: no")
    assert len(found(run(*claims, other))) == 2


def test_what_cannot_be_verified_is_said_once_per_reason():
    claims = [claim(FORWARD, oracle=o, outcome="unverified", reason="not synced") for o in ("peft", "author")]
    finding = only(run(*claims))
    assert (finding.tag, finding.severity) == ("OK-undoc", "major")
    assert finding.title == "Forward equation cannot be verified: not synced"
    assert judge(run(*claims)).verdicts["lora"].doc_gaps == 0


def test_not_applicable_is_no_finding():
    assert (
        found(run(claim(FORWARD), claim("dropout.active", outcome="not_applicable", reason="no dropout")))
        == ()
    )


def test_a_missing_mode_is_a_finding():
    missing = no_mode("forward.modes", "ia3")
    finding = only(run(missing))
    assert finding.title == "A mode of the references is missing: feedforward is refused"
    assert (finding.tag, finding.severity) == ("OK-undoc", "major")
    assert only(run(missing, docstring="Gates outputs only; feed-forward is left out.")).tag == "OK-doc"


def test_no_save_is_a_finding_and_no_bug():
    lacking = {"outcome": "not_applicable", "reason": "the subject has no save", "cause": "not_offered"}
    finding = only(run(claim("save_load.round_trip", detail="save", **lacking)))
    assert (finding.tag, finding.severity) == ("OK-undoc", "major")
    assert found(run(claim("targets.default", detail="adapt_model", **lacking))) == ()


def test_no_save_is_one_finding_of_the_aspect_that_needs_it():
    because = {"outcome": "not_applicable", "cause": "not_offered"}
    finding = only(
        run(
            claim("save_load.round_trip", detail="save", reason="x offers no save", **because),
            claim("lifecycle.saved", detail="save", reason="not offered: save: x offers no save", **because),
            claim("save_load.roles", detail="load", reason="x offers no load", **because),
        )
    )
    assert len(finding.claims) == 2
    assert finding.title == "Save and load cannot be verified: the subject offers no save or no load"


def test_a_declared_deviation_is_tagged_by_the_docstring():
    declared = claim("dtype.output", outcome="declared")
    said = only(run(declared, declarations=(declaration("dtype.output"),)))
    unsaid = only(run(declared, declarations=(declaration("dtype.output", documented=False),)))
    assert (said.tag, said.severity, said.title) == ("OK-doc", "none", "by design")
    assert (unsaid.tag, unsaid.severity) == ("OK-undoc", "minor")


def test_a_declared_gradient_is_major():
    declared = claim("step0.gradients", outcome="declared")
    finding = only(run(declared, declarations=(declaration("step0.gradients"),)))
    assert (finding.tag, finding.severity) == ("OK-doc", "major")


def test_a_bug_that_the_prior_review_has_is_not_new():
    failing = run(claim(FORWARD, outcome="fail"))
    known = PriorFinding("P1", "the forward is wrong", checks=("forward.*",))
    assert only(failing, prior("lora", "Buggy")).new
    assert not only(failing).new  # without an earlier review nothing is new to it
    assert not only(failing, prior("lora", "Buggy", known)).new


def test_another_mistake_in_the_same_check_is_new():
    failing = run(claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.b")))
    known = PriorFinding("P1", "wrong", checks=(FORWARD,), mistakes=("lora.a",))
    assert only(failing, prior("lora", "Buggy", known)).new


def test_a_bug_overturns_faithful_and_only_that():
    failing = run(claim(FORWARD, outcome="fail"))
    assert only(failing, prior("lora", "Faithful")).overturn
    assert not only(failing, prior("lora", "Partial")).overturn
    unverified = run(claim(FORWARD, outcome="unverified", reason="absent"))
    assert not only(unverified, prior("lora", "Faithful")).overturn


def test_a_prior_bug_that_a_reference_shares_is_overturned():
    shared = run(claim(FORWARD, outcome="fail"), agreeing(FORWARD))
    known = PriorFinding("P1", "wrong", checks=(FORWARD,))
    assert only(shared, prior("lora", "Buggy", known)).overturn


def test_findings_cite_both_sides():
    finding = only(run(claim(FORWARD, outcome="fail")))
    assert finding.subject_cites[0].label == "tests/reports/sample.py:L7"
    assert any(c.label.startswith("peft_lora_layer.py:L") for c in finding.reference_cites)


def test_lines_about_something_else_are_not_quoted():
    """A fault in the life of an adapter, where the subject names no place for that, has none."""
    asked = info("lifecycle.output", "critical", "", "")
    finding = only(run(claim(asked.id, outcome="fail"), checks={**CHECKS, asked.id: asked}))
    assert finding.subject_cites == ()


def test_a_finding_says_against_whom_it_stands():
    claims = claim(FORWARD, "delora", outcome="fail"), agreeing(FORWARD, "delora")
    finding = only(run(*claims))
    assert (finding.differ, finding.agree, finding.not_asked) == (("peft",), ("author",), ("paper",))
    silent = claim(FORWARD, "delora", "paper", outcome="unverified", reason="not synced")
    assert found(run(*claims, silent))[0].not_asked == ("paper",)


def test_who_was_asked_about_the_very_case_is_what_counts():
    case = dataclasses.replace(
        claim(FORWARD, outcome="fail").witness, agree=("author",), not_asked=("paper",)
    )
    finding = only(
        run(claim(FORWARD, "delora", outcome="fail", witness=case), claim(FORWARD, "delora", "paper"))
    )
    assert (finding.differ, finding.agree, finding.not_asked) == (("peft",), ("author",), ("paper",))


def test_who_differs_on_the_very_case_does_not_excuse():
    case = dataclasses.replace(claim(FORWARD, outcome="fail").witness, differ=("peft", "author"))
    assert only(run(claim(FORWARD, outcome="fail", witness=case), agreeing(FORWARD))).tag == "BUG"


def test_what_the_subject_said_aloud_is_kept():
    case = dataclasses.replace(claim(FORWARD, outcome="fail").witness, heard=("dropout is ignored",))
    assert only(run(claim(FORWARD, outcome="fail", witness=case))).heard == ("dropout is ignored",)


def test_what_is_refused_with_a_warning_is_a_missing_mode():
    ignored = diagnosis("lora.dropout_ignored")
    silent = claim("dropout.active", outcome="fail", diagnosis=ignored)
    said = dataclasses.replace(
        silent, witness=dataclasses.replace(silent.witness, heard=("dropout is ignored",))
    )
    finding = only(run(said))
    assert (finding.tag, finding.severity) == ("OK-undoc", "major")
    assert '"dropout is ignored"' in finding.title
    assert only(run(silent)).tag == "BUG"


def test_the_form_of_a_file_is_style():
    own = diagnosis("save_load.pickle", source="check", severity="minor", agrees_with="the authors")
    made = judge(run(claim(FORWARD), claim("save_load.round_trip", outcome="fail", diagnosis=own)))
    assert (made.findings[0].tag, made.findings[0].severity) == ("STYLE", "minor")
    assert made.verdicts["lora"].doc_gaps == 1


def test_what_a_check_says_of_itself_names_no_other_check():
    own = claim("dtype.output", outcome="fail", diagnosis=diagnosis("dtype.single", source="check"))
    finding = only(run(own, claim(FORWARD, outcome="fail")))
    assert finding.title == "The output differs."
    named = claim("dtype.output", outcome="fail", diagnosis=diagnosis("dtype.single"))
    assert {f.title for f in found(run(named, claim(FORWARD, outcome="fail")))} != {"The output differs."}


def test_a_declaration_covers_an_aspect_and_every_oracle_or_one():
    made = claim("dtype.output"), claim("dtype.output", oracle="paper"), claim("dtype.output", "dora")
    assert [declaration("dtype.*").covers(c) for c in made] == [True, True, False]
    assert [declaration("dtype.output", oracle="paper").covers(c) for c in made] == [False, True, False]
    assert not declaration("dtype.*").covers(claim(FORWARD))
    assert not declaration("*").covers(claim(FORWARD))

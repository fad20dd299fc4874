"""The prior review: read or refused in a sentence, judged by evidence, written for the next round."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reports.errors import Malformed, Oversized, ReportsError
from reports.judge.confirm import prior_lines
from reports.judge.judgement import judge
from reports.model import Claim, PriorFinding
from reports.store import audit_json
from reports.store.accept import accepted
from reports.store.prior_file import load_prior
from tests.reports.runs import FORWARD, agreeing, claim, diagnosis, prior, run

COMMITTED = Path(__file__).parents[2] / "docs" / "audit" / "variants_review.toml"


def statuses(old: PriorFinding, *claims: Claim, verdict: str = "Partial") -> list[str]:
    return [line.status for line in prior_lines(judge(run(*claims), prior("lora", verdict, old)), "lora")]


def line(*checks: str, **more: object) -> PriorFinding:
    return PriorFinding("P1", "quoted", checks=checks, **more)  # type: ignore[arg-type]


def test_the_committed_one_is_read():
    old = load_prior(COMMITTED)
    verdicts = {v.variant: v.verdict for v in old.variants.values()}
    assert verdicts == {
        "lora": "Faithful", "pissa": "Partial", "dora": "Faithful", "ia3": "Partial", "hra": "Partial",
        "delora": "Partial",
    }  # fmt: skip
    assert sum(len(v.findings) for v in old.variants.values()) == 5


def test_confirmed():
    assert statuses(line(FORWARD), claim(FORWARD, outcome="fail"), verdict="Buggy") == [
        "Confirmed",
        "Confirmed",
    ]


def test_fixed_where_its_own_cases_were_asked_again():
    old = line(FORWARD, claims={f"{FORWARD}[lora-peft]": 20})
    assert statuses(old, claim(FORWARD)) == ["Fixed since", "Fixed since"]
    fewer = dataclasses.replace(claim(FORWARD), examples=10)  # a weaker profile fixes nothing
    assert statuses(old, fewer)[1] == "Not reproduced here"
    assert statuses(old, claim(FORWARD, oracle="paper"))[1] == "Not reproduced here"


def test_what_was_written_by_hand_is_never_fixed():
    made = judge(run(claim(FORWARD)), prior("lora", "Partial", line("forward.*")))
    _, old = prior_lines(made, "lora")
    assert old.status == "Not reproduced here"
    assert old.evidence.startswith(f"1 claim holds (`{FORWARD}`), on this run's cases")


def test_not_reproduced():
    assert statuses(line("targets.default"), claim(FORWARD))[1] == "Not reproduced here"
    unverified = claim(FORWARD, outcome="unverified", reason="absent")
    assert statuses(line(FORWARD), unverified)[1] == "Not reproduced here"


def test_a_defect_is_known_under_several_names():
    failing = claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.zero_random"))
    assert statuses(line(FORWARD, mistakes=("lora.zero*",)), failing)[1] == "Confirmed"


def test_not_reproduced_where_the_defect_is_another():
    other = claim(FORWARD, outcome="fail", diagnosis=diagnosis("lora.b"))
    old = line(FORWARD, mistakes=("lora.a",))
    assert statuses(old, other, claim(FORWARD, oracle="paper"))[1] == "Not reproduced here"


def test_a_review_of_another_subject_is_none():
    failing = run(claim(FORWARD, outcome="fail"))
    theirs = dataclasses.replace(prior("lora", "Faithful"), subjects=("other",))
    audit = judge(failing, theirs)
    (finding,) = audit.findings
    assert (audit.prior, audit.verdicts["lora"].prior, finding.overturn, finding.new) == (
        None,
        None,
        False,
        False,
    )
    assert audit.verdicts["lora"].new_bugs == 1
    mine = dataclasses.replace(theirs, subjects=("other", "lora_lite"))
    assert judge(failing, mine).findings[0].overturn


def test_the_committed_one_is_about_its_subjects_alone():
    old = load_prior(COMMITTED)
    assert old.is_about("lora_lite")
    assert old.is_about("round1")
    assert not old.is_about("peft")


def test_overturned_where_faithful_was_wrong():
    assert (
        statuses(line("dropout.active"), claim(FORWARD, outcome="fail"), verdict="Faithful")[0]
        == "[OVERTURN]"
    )


def test_overturned_where_a_bug_is_none():
    shared = claim(FORWARD, outcome="fail"), agreeing(FORWARD)
    assert statuses(line(FORWARD), *shared)[1] == "[OVERTURN]"


def test_overturned_where_what_was_accepted_is_a_bug():
    assert statuses(line(FORWARD, tag="OK-doc"), claim(FORWARD, outcome="fail"))[1] == "[OVERTURN]"


def test_a_variant_that_the_prior_does_not_have():
    assert prior_lines(judge(run(), prior("dora", "Faithful")), "lora") == []


def test_an_audit_is_the_next_prior(tmp_path):
    audit = judge(run(claim(FORWARD, outcome="fail", diagnosis=diagnosis()), claim("init.identity")))
    audit_json.write(audit, tmp_path / "audit.json")
    (tmp_path / "prior.toml").write_text(accepted(audit), encoding="utf-8")
    from_toml, from_json = (load_prior(tmp_path / name) for name in ("prior.toml", "audit.json"))
    assert from_toml.variants == from_json.variants
    (old,) = from_toml.variants["lora"].findings
    assert (old.checks, old.mistakes, old.tag) == ((FORWARD,), ("delora.scalar_norm",), "BUG")
    assert not any(f.new for f in judge(run(*audit.run.claims), from_toml).findings)


@pytest.mark.parametrize("text", ['"\\', "\x00\x1b\x7f", "\u202e", "é\U0001f600", 'a"""b', "\n[[variant]]"])
def test_any_text_survives_toml(tmp_path, text):
    reason = f"raised {text}"
    audit = judge(run(claim(FORWARD, outcome="error", reason=reason)))
    (tmp_path / "p.toml").write_text(accepted(audit), encoding="utf-8")
    (old,) = load_prior(tmp_path / "p.toml").variants["lora"].findings
    assert old.quote == audit.findings[0].title


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one"),
        ("variant = 1", "at least one"),
        ("[[variant]]", "without its"),
        ('[[variant]]\nvariant = "lora"', "is none of"),
        ('[[variant]]\nvariant = "lora"\nverdict = "Fine"', "is none of"),
        ('[[variant]]\nvariant = "lora"\nverdict = "Buggy"\nfinding = 1', "findings are written"),
        ('[[variant]]\nvariant = "lora"\nverdict = "Buggy"\n[[variant.finding]]\nid = "P"', "needs an `id`"),
        ('[[variant]]\nvariant = "lora"\nverdict = "Buggy"\n' * 2, "twice"),
        ("[" * 5000, "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("a = {" * 3000, "not valid TOML"),
        ("= 1", "not valid TOML"),
    ],
)
def test_what_is_malformed_is_refused_in_a_sentence(tmp_path, text, says):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(Malformed, match=says) as refused:
        load_prior(tmp_path / "p.toml")
    assert "\n" not in str(refused.value)


def test_a_bomb_is_not_read(tmp_path):
    (tmp_path / "p.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(Oversized):
        load_prior(tmp_path / "p.toml")
    with pytest.raises(ReportsError):
        load_prior(tmp_path)


def test_a_consequence_is_not_what_the_prior_review_saw():
    old = line("dtype.output")
    claims = claim(FORWARD, outcome="fail"), claim("dtype.output", outcome="fail")
    assert statuses(old, *claims)[1] == "Not reproduced here"
    assert judge(run(*claims), prior("lora", "Partial", old)).findings[0].new

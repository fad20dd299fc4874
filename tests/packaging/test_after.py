"""What follows an audit in CI, on audits made by hand: the exit code, the summary, annotations, badges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from adapter_conformance import after, shown
from adapter_conformance.audit import main, parser

from reports.judge.judgement import judge
from reports.model import Audit
from reports.render import annotations, badges, summary
from reports.store import audit_json
from tests.reports.runs import FORWARD, claim, run

GOOD = (claim("init.identity"), claim(FORWARD))
BAD = (claim("init.identity"), claim(FORWARD, outcome="fail"))


def kept(folder: Path, name: str, *claims: object, subject: str = "toylora") -> Path:
    """An audit.json of these claims."""
    made = run(*claims)
    made = dataclasses.replace(made, subject=dataclasses.replace(made.subject, name=subject))
    audit_json.write(judge(made), folder / name)
    return folder / name


def finished(folder: Path, claims: tuple, *options: str, status: int = 1) -> int:
    given = parser().parse_args(list(options))
    return after.finish(given, kept(folder, "new.json", *claims), after.baseline(given), status)


def test_the_same_as_the_baseline_passes_though_something_fails(tmp_path, capsys):
    before = kept(tmp_path, "old.json", *BAD)
    assert finished(tmp_path, BAD, "--baseline", str(before)) == 0
    assert "nothing got worse" in capsys.readouterr().out


def test_worse_than_the_baseline_fails_and_better_is_said(tmp_path, capsys):
    before = kept(tmp_path, "old.json", *GOOD)
    assert finished(tmp_path, BAD, "--baseline", str(before)) == 1
    assert "something got worse" in capsys.readouterr().out
    before = kept(tmp_path, "old.json", *BAD)
    assert finished(tmp_path, GOOD, "--baseline", str(before), status=0) == 0
    assert "+ Buggy -> Faithful" in capsys.readouterr().out


def test_another_subjects_baseline_is_refused(tmp_path, capsys):
    before = kept(tmp_path, "old.json", *GOOD, subject="other")
    assert finished(tmp_path, GOOD, "--baseline", str(before), status=0) == 4
    assert "two subjects cannot be compared" in capsys.readouterr().err


def test_a_baseline_that_is_not_there_is_refused_before_anything_runs(capsys):
    assert main(["--subject", "s.py:S", "--baseline", "nowhere.json"]) == 4
    assert "--baseline nowhere.json" in capsys.readouterr().err


@pytest.mark.parametrize(("fail_on", "expected"), [("any", 1), ("critical", 0), ("major", 1), ("never", 0)])
def test_fail_on(tmp_path, fail_on, expected):
    lost = (*GOOD, claim("save_load.round_trip", outcome="fail"))
    assert finished(tmp_path, lost, "--fail-on", fail_on) == expected


def test_the_audits_own_failure_is_never_excused(tmp_path):
    assert finished(tmp_path, BAD, "--fail-on", "never", status=3) == 3


def test_an_audit_that_is_there_is_shown(tmp_path, capsys):
    new = kept(tmp_path, "new.json", *BAD)
    made = [tmp_path / "summary.md", tmp_path / "audit.sarif", tmp_path / "badges"]
    options = ["--annotations", "--summary", made[0], "--sarif", made[1], "--badges", made[2]]
    assert shown.main([str(new), *map(str, options)]) == 1
    assert "::error file=tests/reports/sample.py" in capsys.readouterr().out
    assert "| LoRA | **Buggy** |" in made[0].read_text()
    assert json.loads(made[1].read_text())["version"] == "2.1.0"
    assert (made[2] / "lora.json").is_file()
    assert shown.main([str(new), "--fail-on", "never"]) == 0
    assert shown.main([str(tmp_path / "nowhere.json")]) == 4


def audit(*claims: object) -> Audit:
    return judge(run(*claims))


def test_annotations_name_file_and_line_and_escape():
    (line,) = annotations.render(audit(*BAD)).splitlines()
    assert line.startswith(
        "::error file=tests/reports/sample.py,line=7,endLine=8,title=lora D1 BUG critical::"
    )
    assert annotations.render(audit(*GOOD)) == ""
    assert annotations._property("a:b,c%\nd") == "a%3Ab%2Cc%25 d"


def test_the_summary_has_the_table_and_what_to_fix_first():
    text = summary.render(audit(*BAD))
    assert "| LoRA | **Buggy** | 1 of 2 |" in text
    assert "**What to fix next**" in text
    assert "`tests/reports/sample.py:L7`: The output differs." in text
    assert "What to fix" not in summary.render(audit(*GOOD))


def test_a_summary_is_below_what_a_host_takes(monkeypatch):
    monkeypatch.setattr(summary, "LARGEST", 900)
    text = summary.render(
        audit(*BAD, *(claim(c, outcome="fail") for c in ("dropout.active", "shapes.canonical")))
    )
    assert len(text.encode()) < 900 + 100
    assert "more: see the review" in text


def test_a_badge_per_variant():
    found = badges.render(audit(*BAD))
    assert json.loads(found["lora"]) == {
        "schemaVersion": 1, "label": "LoRA", "message": "Buggy", "color": "red",
    }  # fmt: skip

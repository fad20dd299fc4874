"""The runner of the real faults, on stand-ins: what counts as found, named, missed, and as an alarm after."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from tests.faults import __main__, audits, judged, table
from tests.faults.audits import Found, Result, Run
from tests.faults.table import BadTable, Fault

FAULT = Fault(
    "lib-1", "lib", "merging", "merged twice", "https://example.org/1", "1.0", "1.1", "lora", ("lifecycle.",),
    "folded in twice", "subject.py:Lib", "lib", ("torch",),
)  # fmt: skip
CLAIM = "lifecycle.merged[lora-paper]"


def found(text: str, tag: str = "BUG", claim: str = CLAIM) -> Found:
    return Found(tag, "critical", text, text, (claim,))


def results(bad: Result, good: Result) -> dict[Run, Result]:
    return dict(zip(table.runs([FAULT]), (bad, good), strict=True))


def result(*findings: Found, outcome: str = "pass") -> Result:
    return Result(findings, {CLAIM: outcome})


RIGHT, OTHER = found("the adapter is folded in twice"), found("peft raised ValueError")


@pytest.mark.parametrize(
    ("bad", "good", "fate", "alarms"),
    [
        (result(RIGHT, outcome="fail"), result(), "named", 0),
        (result(OTHER, outcome="fail"), result(), "found", 0),
        (result(found(RIGHT.text, "OK-undoc"), outcome="fail"), result(), "told", 0),
        (result(), result(), "missed", 0),
        (result(RIGHT, outcome="fail"), result(RIGHT, outcome="fail"), "missed", 1),
        (result(found(RIGHT.text, claim="merge.weight[lora-paper]")), result(), "missed", 0),
        (Result(error="no environment"), result(), "error", 0),
    ],
    ids=["named", "another name", "no bug", "silent", "not told apart", "another check", "no audit"],
)
def test_a_report_is_judged_by_its_two_releases(bad: Result, good: Result, fate: str, alarms: int) -> None:
    """A finding counts where it is new in the release that has the fault; in the other one it is a false alarm."""
    told = judged.judged(FAULT, results(bad, good))
    assert (told.fate, len(told.alarms)) == (fate, alarms)


def test_an_alarm_that_is_argued_to_be_another_fault_is_none() -> None:
    argued = dataclasses.replace(FAULT, shared="another fault of the same name, see 2")
    told = judged.judged(argued, results(result(RIGHT, outcome="fail"), result(RIGHT, outcome="fail")))
    assert told.alarms == ()
    assert "another fault of the same name" in judged.report([told], [])


def test_the_report_counts() -> None:
    """Recall leaves out what could not be audited, and says so."""
    fates = [
        judged.judged(FAULT, results(*pair))
        for pair in (
            (result(RIGHT, outcome="fail"), result()),
            (result(OTHER, outcome="fail"), result()),
            (result(), result()),
            (Result(error="no environment"), result()),
        )
    ]
    assert judged.recall(fates) == (1, 2, 3)
    text = judged.report(fates, [table.Outside("https://example.org/2", "no such call")])
    assert (
        "3 reports in 1 libraries: 2 found (67 %), 1 with the right name (33 %); false alarms after: 0."
        in text
    )
    assert "no environment" in text
    assert "<https://example.org/2>: no such call" in text


def test_the_table_is_whole() -> None:
    """Every report has a link, two releases, checks that exist and a name that is a regular expression."""
    from harness.engine.checks import load_checks

    faults, outside = table.load()
    checks = load_checks()
    for fault in faults:
        assert fault.link.startswith("https://github.com/"), fault.id
        assert fault.bad != fault.good, fault.id
        assert all(any(c.startswith(begins) for c in checks) for begins in fault.checks), fault.id
        assert (audits.ROOT / fault.ref.partition(":")[0]).is_file(), fault.id
    assert all(o.because and o.link.startswith("https://") for o in outside)
    assert len({o.link for o in outside}) == len(outside)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[fault]]\nid = 'peft-1'\n", "peft-1 has no bad"),
        (
            "[[fault]]\nid='x-1'\nkind='k'\nsaid='s'\nbad='1'\ngood='2'\nvariant='lora'\nchecks=[]\nright='('\n",
            "subject",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadTable, match=says):
        table.load(path)


def test_a_pattern_that_finds_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["no-such-report"]) == 4
    assert "no report's id" in capsys.readouterr().err


def test_releases_are_audited_once_for_all_their_reports() -> None:
    """Two reports on one release and variant are one audit, which asks the checks of both."""
    other = dataclasses.replace(FAULT, id="lib-2", bad="1.1", good="1.2", checks=("dtype.",))
    runs = table.runs([FAULT, other])
    assert [run.requires[0] for run in runs] == ["lib==1.0", "lib==1.1", "lib==1.2"]
    assert runs[1].asks("dtype.output")
    assert runs[1].asks("lifecycle.others")
    assert not runs[0].asks("dtype.modes")


def test_what_is_kept_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call reads; another state of the audit's code asks again, unless old results are wanted."""
    run = Run("tests/subjects/wrapped.py:Wrapped", (), "lora", ("shapes.roles",), only=True)
    asked: list[Run] = []

    def answer(group: list[Run], seconds: float, prepare: object) -> list[tuple[Run, Result]]:
        asked.extend(group)
        return [(each, result(RIGHT)) for each in group]

    monkeypatch.setattr(audits, "_asked", answer)
    ask = {"keep_old": False, "seconds": 1.0, "say": lambda line: None, "folder": tmp_path}
    first = audits.results([run], **ask)  # type: ignore[arg-type]
    assert audits.results([run], **ask) == first  # type: ignore[arg-type]
    assert len(asked) == 1
    monkeypatch.setattr(audits, "state_of", lambda run: "another")
    assert audits.results([run], **{**ask, "keep_old": True}) == first  # type: ignore[arg-type]
    assert len(asked) == 1
    audits.results([run], **ask)  # type: ignore[arg-type]
    assert len(asked) == 2


def test_half_a_file_is_asked_again(tmp_path: Path) -> None:
    run = Run("tests/subjects/wrapped.py:Wrapped", (), "lora")
    (tmp_path / f"{audits.key_of(run)}.json").write_text('{"state": ', encoding="utf-8")
    assert audits.kept(run, folder=tmp_path) is None


def test_an_audit_that_cannot_be_made_is_a_result() -> None:
    """A subject that does not import, and one that lacks the variant, end in a sentence, and nothing else."""
    (_, nowhere), (_, lacks) = (
        next(
            iter(audits._asked([Run(ref, (), variant, ("shapes.roles",), only=True)], 120, lambda run: None))
        )
        for ref, variant in (("tests/nowhere.py:It", "lora"), ("harness/subjects/peft.py:Peft", "none"))
    )
    assert nowhere.error is not None
    assert "nowhere.py" in nowhere.error
    assert lacks.error == f"LookupError: peft {__import__('peft').__version__} has no none"


def test_packages_that_the_environment_lacks_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a library looks for by itself, the audit's own packages are not what it finds."""
    (tmp_path / "lib/python3.11/site-packages/bitsandbytes").mkdir(parents=True)
    monkeypatch.setattr(audits, "_interpreter", lambda run: tmp_path / "bin" / "python")
    monkeypatch.setattr(sys, "modules", {"bitsandbytes": sys, "torchao": sys})
    monkeypatch.setattr(sys, "path", list(sys.path))
    audits._put_in_front(Run("subject.py:Lib", ("lib==1.0",), "lora"))
    assert (sys.modules["torchao"], sys.modules["bitsandbytes"]) == (None, sys)

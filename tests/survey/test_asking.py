"""A library in a process of its own: whatever it does ends in an answer or in one sentence."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from harness.survey import asking
from harness.survey.answers import AUDIT, Shelf
from harness.survey.asking import Progress, Stopped, Ways, anonymous, ask
from harness.survey.questions import ROOT
from reports.judge.judgement import judge
from reports.store import audit_json
from tests.survey.fakes import KEY, broken, process, question_of

COPIES = "import shutil, sys; shutil.copy({source!r}, sys.argv[1] + '/audit.json'); {more}"
QUIET = lambda library, percent: None  # noqa: E731


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A complete audit."""
    audit_json.write(judge(broken()), tmp_path / "made.json")
    return str(tmp_path / "made.json")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(asking, "POLL", 0.05)
    return Shelf(tmp_path / "shelf")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_complete_audit_is_an_answer(
    shelf: Shelf, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Whatever the exit code: 1 says that something deviates, 3 that the audit failed somewhere."""
    monkeypatch.setattr(asking, "command", process(COPIES.format(source=source, more=f"sys.exit({code})")))
    answer = ask(question_of(tmp_path), KEY, shelf, Ways(60), QUIET)
    assert answer.failure == ""
    assert shelf.audit(answer).run.subject.name == "lora_lite"


def test_what_is_there_is_not_asked_again(
    shelf: Shelf, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "command", process(COPIES.format(source=source, more="")))
    first = ask(question_of(tmp_path), KEY, shelf, Ways(60), QUIET)
    monkeypatch.setattr(asking, "command", process("raise SystemExit('asked again')"))
    assert ask(question_of(tmp_path), KEY, shelf, Ways(60), QUIET) == first


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('ERROR: no uv', file=sys.stderr); sys.exit(4)", "code 4 before it was complete: no uv"),
        ("import os; os.abort()", "exit code -6"),
        ("raise ValueError('boom')", "ValueError: boom"),
        (f"raise ValueError('{ROOT}/harness/x.py')", "ValueError: harness/x.py"),
        ("import sys; open(sys.argv[1] + '/audit.json', 'w').write('{}')", "audit.json is no audit"),
    ],
)  # fmt: skip
def test_no_audit_is_a_sentence(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    monkeypatch.setattr(asking, "command", process(code))
    answer = ask(question_of(tmp_path), KEY, shelf, Ways(60), QUIET)
    assert words in answer.failure
    assert "\n" not in answer.failure


def test_a_limit_ends_the_process_and_its_children(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    code = "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
    code += f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    monkeypatch.setattr(asking, "command", process(code))
    answer = ask(question_of(tmp_path), KEY, shelf, Ways(3), QUIET)
    assert answer.failure == "not done within 0 minutes: 0 % of its claims were asked"
    for _ in range(100):
        if not _runs(int(pid.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the child of the process is still there")


def _runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended and waits to be collected does not run."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_interruption_keeps_nothing(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "command", process("import time; time.sleep(60)"))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        ask(question_of(tmp_path), KEY, shelf, Ways(60, stop=stop), QUIET)
    assert shelf.any_of(question_of(tmp_path)) == []


def test_progress_is_that_of_the_partial_audit(tmp_path: Path) -> None:
    file, progress = tmp_path / AUDIT, Progress(tmp_path / AUDIT)
    assert progress.now() == 0
    file.write_text('{"claims": [1], "generator": {"context": {"missing": [1, 2, 3]}}}', encoding="utf-8")
    assert progress.now() == 25
    file.write_text('{"claims": [1, 2', encoding="utf-8")
    assert progress.now() == 25


def test_no_folder_of_this_machine() -> None:
    words = f"in {ROOT}/refs/a.py, {Path.home()}/b and /x/lib/python3.11/site-packages/keras/c.py:3"
    assert anonymous(words) == "in refs/a.py, b and keras/c.py:3"

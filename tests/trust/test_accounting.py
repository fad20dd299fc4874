"""However a run ends, no review reads as complete that is not."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reports.errors import Incomplete
from reports.store import audit_json
from tests.trust.runs import ROOT, Files, audit, command, reports

NARROW = ("--variant=ia3", "--oracle=paper")
CRASHING = """
import os
from oracles.equation import Equation

class Crashing(Equation):
    variants = frozenset({"ia3"})
    def merge(self, adapted):
        os._exit(13)
"""


@pytest.fixture
def files(tmp_path) -> Files:
    """A run's outputs, the review of an earlier run among them."""
    found = Files(tmp_path)
    found.review.write_text("an earlier review: everything is Faithful")
    return found


def assert_partial(files: Files) -> None:
    """What is left says that it is not whole, and what is missing."""
    with pytest.raises(Incomplete):
        audit_json.read(files.audit)
    assert reports("render", files.audit).returncode == 2
    shown = reports("render", "--allow-partial", files.audit)
    assert shown.returncode == 0, shown.stderr
    assert "**INCOMPLETE.**" in shown.stdout
    for claim in missing(files.audit):
        assert f"`{claim}`" in shown.stdout


def missing(path: Path) -> list[str]:
    document = json.loads(path.read_text())
    asked = {c["id"] for c in document["claims"]}
    left = [i for i in document["generator"]["context"]["planned"] if i not in asked]
    assert left
    return left


def test_nothing_collected_leaves_no_review(files):
    done = audit(*NARROW, *files.options, "-k", "no_such_question")
    assert done.returncode == 5
    assert "no review was written" in done.stdout
    assert list(files.folder.iterdir()) == []


@pytest.mark.parametrize("option", ["--variant=", "--oracle=,", "--variant=hra"])
def test_an_empty_selection_is_refused(option, tmp_path):
    done = audit(option, "--subject=tests/trust/wrong.py:OnlyGates", *Files(tmp_path).options)
    assert done.returncode == 4
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_stopped_at_the_first_failure(files):
    assert audit(*NARROW, *files.options, "-x").returncode == 1
    assert "**INCOMPLETE.**" in files.review.read_text()
    assert_partial(files)


def test_a_selection_of_tests_is_not_the_audit(files):
    assert audit(*NARROW, *files.options, "-k", "test_identity").returncode == 1
    assert "**INCOMPLETE.**" in files.review.read_text()
    assert_partial(files)


def test_a_worker_that_dies(files):
    (files.folder / "crashing.py").write_text(CRASHING)
    done = audit(
        *NARROW,
        *files.options,
        "-n1",
        f"--subject={files.folder / 'crashing.py'}:Crashing",
        "-k",
        "test_merge",
    )
    assert done.returncode == 1, done.stdout
    assert "merge.weight[ia3-paper]" in missing(files.audit)
    assert_partial(files)


def test_killed_in_the_middle(files):
    process = subprocess.Popen(
        command(*NARROW, *files.options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    until = time.monotonic() + 240
    while not files.audit.is_file() or not json.loads(files.audit.read_text())["claims"]:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not files.review.exists()
    assert_partial(files)

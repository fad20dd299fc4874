"""A failure can be had again: by the line that is printed, and from the examples that were kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from harness.cases import example_database
from harness.cases.profiles import Profile
from harness.engine.session import claims_for
from reports.model import Claim
from tests.packaging import toy
from tests.trust.runs import ROOT, Files, audit
from tests.trust.wrong import Wrong

CHECK = "forward.random_parameters"


def asked(seed: int = 0) -> Claim:
    profile = Profile("quick", 4, seed)
    (claim,) = claims_for(
        Wrong(), variants=["ia3"], oracles=["paper"], checks=lambda c: c.id == CHECK, profile=profile
    )
    return claim


def test_kept_examples_are_tried_first_and_change_nothing_when_unset(tmp_path, monkeypatch):
    monkeypatch.delenv(example_database.VARIABLE, raising=False)
    before = asked()
    monkeypatch.setenv(example_database.VARIABLE, str(tmp_path / "kept"))
    first = asked()
    assert (first.outcome, first.witness) == ("fail", before.witness)
    kept = [p for p in (tmp_path / "kept").rglob("*") if p.is_file()]
    assert kept
    assert asked(seed=1).outcome == "fail"
    monkeypatch.delenv(example_database.VARIABLE)
    assert asked() == before


def test_each_claim_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(example_database.VARIABLE, str(tmp_path))
    one, other = example_database.database("a"), example_database.database("b")
    assert one is not None
    assert other is not None
    one.save(b"k", b"v")
    assert list(one.fetch(b"k")) == [b"v"]
    assert list(other.fetch(b"k")) == []
    one.delete(b"k", b"v")
    assert list(one.fetch(b"k")) == []


def test_what_cannot_be_used_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(example_database.VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(example_database.BadDatabase, match="cannot be used"):
        example_database.database("a")


def test_redis_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setenv(example_database.VARIABLE, "redis://nowhere:1/0")
    with pytest.raises(example_database.BadDatabase, match="redis is not installed"):
        example_database.database("a")


def test_the_printed_line_asks_the_same_again():
    claim = asked(seed=7)
    assert claim.witness is not None
    line = claim.witness.replay.replace("--subject lora_lite", "--subject tests/trust/wrong.py:Wrong")
    done = again(line)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert claim.witness.quantity in done.stdout
    for key, value in claim.witness.case.items():
        assert f"{key} {value}" in done.stdout


def again(line: str) -> subprocess.CompletedProcess[str]:
    """A printed line as a reader would paste it."""
    words = shlex.split(line)
    assert words[0] == "pytest"
    return subprocess.run(
        [sys.executable, "-m", *words, "-q", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_the_line_of_a_subject_in_another_interpreter(tmp_path):
    """It names the interpreter, without which the subject would run here."""
    repository = toy.repository(tmp_path / "repository", wrong=True)
    files, there = Files(tmp_path), f"--subject-python={sys.executable}"
    audit(
        f"--subject={repository}/subject.py:Toy", there, "--variant=lora", "--oracle=paper", "--aspect=scale",
        *files.options,
    )  # fmt: skip
    claims = json.loads(files.audit.read_text())["claims"]
    line = next(c["witness"]["replay"] for c in claims if c["outcome"] == "fail")
    assert there in shlex.split(line)
    done = again(line)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout

"""The commands around the corpus: any program asked, the corpus exported, a consumer without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkpoints.__main__ import main
from harness.checkpoints.vectors_run import RIGHT, TAKEN, WRONG, Answer, judged, merged_answer, refusal
from oracles.vectors.corpus import Vector, vectors
from oracles.vectors.writer import HOME

ROOT = HOME.parents[1]


def _vector(name: str) -> Vector:
    return next(v for v in vectors() if v.id == name)


def _run(command: str, only: str) -> int:
    return main(["vectors", "run", "--command", command, "--only", only])


def test_a_program_that_merges_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\ncp -r "$1" "$3"\n')
    tool.chmod(0o755)
    assert _run(f"{tool} {{base}} {{adapter}} {{out}}", "rslora.rank_three,refuse.missing_A") == 1
    out = capsys.readouterr().out
    assert "the update is not applied; layers." in out
    assert "it has to be refused: a module's lora_A is missing" in out
    assert "2 vectors: 1 taken, 1 wrong" in out


def test_a_program_that_refuses_everything_is_right_about_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho 'cannot do this' >&2\nexit 4\n")
    tool.chmod(0o755)
    assert _run(f"{tool} {{base}} {{adapter}} {{out}}", "refuse.missing_A,refuse.scalar") == 0
    assert "2 vectors: 2 right" in capsys.readouterr().out
    assert _run(f"{tool} {{base}} {{adapter}} {{out}}", "lora.rank_one") == 1
    assert "cannot do this" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("tool {base} {adapter}", "lacks {out}"),
        ("no-such-program {base} {adapter} {out}", "there is no program 'no-such-program'"),
    ],
)
def test_bad_commands(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(command, "lora.rank_one") == 2
    assert words in capsys.readouterr().err


def test_no_such_vector(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("tool {base} {adapter} {out}", "nothing.like.it") == 2
    assert "no vector's name starts with" in capsys.readouterr().err


def test_a_right_answer_and_a_wrong_one() -> None:
    vector = _vector("rslora.rank_three")
    assert judged(vector, vector.merged) == Answer(vector.id, RIGHT)
    wrong = judged(vector, vector.reading("scale.over_rank"))
    assert wrong.verdict == WRONG
    assert wrong.reason.startswith("the update is α/r where the file says α/√r; layers.")
    half = {n: t.half() for n, t in vector.merged.items()}
    assert judged(vector, half).verdict == RIGHT


def test_what_has_to_be_refused() -> None:
    vector = _vector("refuse.missing_A")
    assert merged_answer(vector, HOME).verdict == TAKEN
    assert refusal(vector, "no").verdict == RIGHT
    assert refusal(_vector("lora.rank_one"), "no").verdict == "refused"
    assert refusal(_vector("prefix.no_prefix"), "no").verdict == RIGHT


def test_export_is_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vectors", "export", str(tmp_path / "out")]) == 0
    listed = json.loads((tmp_path / "out" / "corpus.json").read_text())["vectors"]
    assert f"{len(listed)} vectors" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out" / "vectors").iterdir()} == set(listed)
    assert main(["vectors", "export", str(tmp_path / "out")]) == 2


def test_the_consumer_in_the_guide_needs_numpy_alone() -> None:
    script = ROOT / "docs" / "consume_vectors.py"
    code = script.read_text()
    assert "torch" not in code.partition('"""')[2].partition('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 75
    done = subprocess.run([sys.executable, script, HOME], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("65 of 65 vectors right", 0), done.stderr

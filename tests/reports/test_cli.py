"""`python -m reports`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest

from reports.__main__ import FORMATS, main
from reports.judge.judgement import judge
from reports.model import Claim, Run
from reports.store import audit_json
from tests.reports.runs import FORWARD, claim, declaration, plan, prior, run

CLAIMS = (claim(FORWARD), claim("init.identity"), claim("training.sgd", "delora", outcome="fail"))
PLAN = plan(*CLAIMS)


def file(folder: Path, name: str, made: Run) -> str:
    audit_json.write(judge(made, prior("delora", "Partial")), folder / name)
    return str(folder / name)


def call(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(arguments, out), out.getvalue()


def shards(folder: Path, *parts: tuple[Claim, ...], **more: object) -> list[str]:
    made = [run(*p, planned=PLAN, shard=f"{n}/{len(parts)}", **more) for n, p in enumerate(parts, 1)]  # type: ignore[arg-type]
    variants = run(*CLAIMS)
    whole = [dataclasses.replace(m, variants=variants.variants, subject=variants.subject) for m in made]
    return [file(folder, f"{n}.json", m) for n, m in enumerate(whole, 1)]


@pytest.mark.parametrize("name", FORMATS)
def test_render_twice_gives_the_same(tmp_path, name):
    path = file(tmp_path, "a.json", run(*CLAIMS))
    code, words = call("render", path, "--format", name)
    assert (code, words) == call("render", path, "--format", name)
    assert code == 0
    assert "lora" in words


def test_render_refuses_what_is_incomplete(tmp_path, capsys):
    audit_json.write_partial(run(*CLAIMS[:1], planned=PLAN), tmp_path / "a.json")
    assert call("render", str(tmp_path / "a.json"))[0] == 2
    assert capsys.readouterr().err.startswith("refused: a.json has no `complete`")
    code, words = call("render", str(tmp_path / "a.json"), "--allow-partial")
    assert code == 0
    assert all(key.id in words for key in PLAN[1:])


def test_merged_shards_are_the_whole_run(tmp_path):
    whole = Path(file(tmp_path, "whole.json", run(*CLAIMS))).read_bytes()
    for parts in ([CLAIMS[:1], CLAIMS[1:]], [CLAIMS[2:], CLAIMS[:2]], [CLAIMS[:1], CLAIMS[1:2], CLAIMS[2:]]):
        code, _ = call("merge", *shards(tmp_path, *parts), "-o", str(tmp_path / "out.json"))
        assert code == 1  # one claim fails
        assert (tmp_path / "out.json").read_bytes() == whole


def test_merge_joins_what_the_shards_know_of_declarations(tmp_path):
    asked = [(declaration(FORWARD, occurred=answer),) for answer in (None, True)]
    paths = [shards(tmp_path, CLAIMS[:1], CLAIMS[1:], declarations=d)[n] for n, d in enumerate(asked)]
    first = shards(tmp_path / "a", CLAIMS[:1], CLAIMS[1:], declarations=asked[0])[0]
    assert call("merge", first, paths[1], "-o", str(tmp_path / "out.json"))[0] == 1
    context = json.loads((tmp_path / "out.json").read_text())["generator"]["context"]
    assert context["declarations"][0]["occurred"] is True


def test_merge_refuses_overlap_gaps_and_strangers(tmp_path, capsys):
    def refused(*paths: str) -> str:
        assert call("merge", *paths, "-o", str(tmp_path / "out.json"))[0] == 2
        assert not (tmp_path / "out.json").exists()
        return capsys.readouterr().err

    one, two = shards(tmp_path, CLAIMS[:1], CLAIMS[1:])
    assert "overlap" in refused(one, one)
    assert "claims are in none of the shards" in refused(one)
    other = {"name": "deep", "examples": 20, "seed": 1}
    stranger = shards(tmp_path / "b", CLAIMS[:1], CLAIMS[1:], profile=other)[1]
    assert "differ in their profile" in refused(one, stranger)
    newer = run().oracles[0]
    drifted = (dataclasses.replace(newer, version="0.22"), *run().oracles[1:])
    assert "differ in the reference peft" in refused(
        one, shards(tmp_path / "c", CLAIMS[:1], CLAIMS[1:], oracles=drifted)[1]
    )
    assert "has no `complete`" in refused(one, str(_partial(tmp_path)))
    assert call("merge", one, two, "-o", str(tmp_path / "out.json"))[0] == 1


def _partial(folder: Path) -> Path:
    audit_json.write_partial(run(*CLAIMS[1:], planned=PLAN), folder / "partial.json")
    return folder / "partial.json"


def test_diff(tmp_path):
    good = file(tmp_path, "good.json", run(claim(FORWARD), claim("init.identity")))
    bad = file(tmp_path, "bad.json", run(claim(FORWARD, outcome="fail"), claim("init.identity")))
    gone = file(tmp_path, "gone.json", run(claim(FORWARD)))
    assert call("diff", good, good) == (0, "lora_lite 0.1.0\nno change\n")
    code, words = call("diff", good, bad)
    assert code == 1
    assert f"- {FORWARD}[lora-peft]: pass (ratio 1.23) -> fail (ratio 2.94e6)" in words
    assert "- Faithful -> Buggy" in words
    code, words = call("diff", bad, good)
    assert code == 0
    assert "+ Buggy -> Faithful" in words
    assert "+ no more: D1 [BUG] The output differs." in words
    assert call("diff", good, gone)[0] == 1


def test_accept_writes_the_next_prior(tmp_path):
    path = file(tmp_path, "a.json", run(*CLAIMS))
    assert call("accept", path, "-o", str(tmp_path / "prior.toml"))[0] == 0
    assert 'verdict = "Buggy"' in (tmp_path / "prior.toml").read_text()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["diff", "one"], ["render", "a", "--format", "pdf"]])
def test_wrong_usage_is_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


def test_files_that_are_not_there_are_exit_2(tmp_path, capsys):
    assert call("diff", str(tmp_path / "a"), str(tmp_path / "b"))[0] == 2
    path = file(tmp_path, "a.json", run(*CLAIMS))
    assert call("accept", path, "-o", str(tmp_path))[0] == 2
    error = capsys.readouterr().err
    assert "cannot be read" in error
    assert "Traceback" not in error

"""Shards: a partition that depends on the claims' ids alone, and merges that are refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plugin.shards import BadShard, Shard, parse, part_of
from reports.errors import MergeRefused, ShardOnly
from reports.judge.judgement import judge
from reports.model import Audit
from reports.store import audit_json, merge
from tests.reports.runs import claim, plan, run
from tests.trust.runs import audit

IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)
NAMES = ("init.identity", "forward.random_parameters", "dtype.output", "training.sgd")
PLANNED = plan(*map(claim, NAMES))


@given(IDS, st.integers(2, 6))
@settings(derandomize=True, deadline=None)
def test_shards_are_a_partition_of_even_size(ids, count):
    parts = [Shard(i + 1, count).part(ids) for i in range(count)]
    assert sorted(id_ for part in parts for id_ in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(IDS.flatmap(lambda ids: st.tuples(st.just(ids), st.permutations(ids))))
@settings(derandomize=True, deadline=None)
def test_the_order_of_the_claims_does_not_matter(pair):
    ids, shuffled = pair
    assert set(Shard(2, 3).part(ids)) == set(Shard(2, 3).part(shuffled))


@pytest.mark.parametrize(
    "given", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", "1.5/3", "١/٣", " 1/3", "9" * 5000 + "/1"]
)
def test_bad_values_are_one_sentence(given):
    with pytest.raises(BadShard, match="expected I/N"):
        parse(given)


def test_one_of_one_is_the_whole():
    assert parse("1/1") is None
    assert parse(None) is None


def test_more_shards_than_claims_are_refused():
    with pytest.raises(BadShard, match="only 2 claims"):
        part_of(Shard(3, 3), ["a", "b"])


@pytest.mark.parametrize("given", ["4/3", "x", "900000/999999"])
def test_pytest_says_it_in_one_line_and_exits_4(given, tmp_path):
    done = audit(f"--shard={given}", f"--audit-json={tmp_path / 'a.json'}")
    assert done.returncode == 4
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(said) == 1, done.stderr
    assert "--shard" in said[0]
    assert list(tmp_path.iterdir()) == []


def shard(index: int, names: tuple[str, ...], **more: object) -> Audit:
    given = {"planned": PLANNED, "shard": f"{index}/2", **more}
    return judge(run(*map(claim, names), **given))


HALVES = NAMES[:2], NAMES[2:]


def test_two_halves_are_the_whole():
    whole = judge(run(*map(claim, NAMES)))
    merged = merge.merged({"a": shard(1, HALVES[0]), "b": shard(2, HALVES[1])})
    assert audit_json.dumps(merged) == audit_json.dumps(whole)


@pytest.mark.parametrize(
    ("what", "second"),
    [
        ("overlap", {"names": NAMES[1:]}),
        ("in none of the shards", {"names": NAMES[3:]}),
        ("subject", {"names": HALVES[1], "subject": "other"}),
        ("profile", {"names": HALVES[1], "profile": {"name": "deep", "examples": 200, "seed": 0}}),
        ("profile", {"names": HALVES[1], "profile": {"name": "quick", "examples": 20, "seed": 1}}),
        ("environment", {"names": HALVES[1], "environment": {"torch": "1.0"}}),
        ("reference", {"names": HALVES[1], "oracles": "other"}),
        ("whole run", {"names": HALVES[1], "planned": (), "shard": None}),
        ("another run", {"names": HALVES[1], "planned": PLANNED[1:]}),
    ],
)
def test_what_does_not_belong_together_is_refused(what, second):
    names = second.pop("names")
    base = run(*map(claim, names))
    if "subject" in second:
        second["subject"] = dataclasses.replace(base.subject, version="9")
    if "oracles" in second:
        changed = dataclasses.replace(base.oracles[0], version="9")
        second["oracles"] = (changed, *base.oracles[1:])
    with pytest.raises(MergeRefused, match=what):
        merge.merged({"a": shard(1, HALVES[0]), "b": shard(2, names, **second)})


def test_a_shard_alone_says_nothing(tmp_path):
    audit_json.write(shard(1, HALVES[0]), tmp_path / "a.json")
    with pytest.raises(ShardOnly, match="merge"):
        audit_json.read(tmp_path / "a.json")

"""The corpus is what the equations give, tells its readings apart, and is the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oracles.vectors.bases import BASES
from oracles.vectors.corpus import Vector, vectors
from oracles.vectors.expected import APART
from oracles.vectors.methods import modules
from oracles.vectors.writer import HOME, write_corpus

ALL = list(vectors())
APPLIED = [v for v in ALL if v.about["expect"] != "refuse"]


def _files(home: Path) -> list[str]:
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and p.name != "README.md")


def test_there_are_enough_vectors_of_every_kind() -> None:
    assert len(ALL) >= 120
    methods = {v.about["flags"]["method"] for v in APPLIED}
    assert methods == {module.METHOD.id for module in modules()}
    assert {v.about["base"] for v in APPLIED} == set(BASES)


def test_the_committed_corpus_is_what_the_writer_writes(tmp_path: Path) -> None:
    """The same bytes again; on another machine, the same numbers up to its rounding."""
    write_corpus(tmp_path)
    names = _files(tmp_path)
    assert names == _files(HOME)
    for name in names:
        _same(tmp_path / name, HOME / name)


def _same(new: Path, old: Path) -> None:
    if new.read_bytes() == old.read_bytes():
        return
    assert new.name == "expected.safetensors", f"{old} is not what the writer writes"
    fresh, kept = load_file(new), load_file(old)
    assert fresh.keys() == kept.keys()
    for name, tensor in fresh.items():
        torch.testing.assert_close(tensor, kept[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vector", APPLIED, ids=lambda v: v.id)
def test_no_two_readings_come_close(vector: Vector) -> None:
    """From the files alone: any two of the right and the wrong ΔW differ by 1 % of the update."""
    readings = {"right": vector.merged}
    readings |= {w["id"]: vector.reading(w["id"]) for w in vector.about["wrong_readings"]}
    names = list(readings)
    unit = torch.cat([d.flatten() for d in vector.part("delta/").values()]).norm()
    tensors = sorted(vector.untied)
    flat = torch.stack([torch.cat([r[n].flatten() for n in tensors]) for r in readings.values()])
    gaps = torch.cdist(flat, flat) / unit
    for i, name in enumerate(names):
        for j in range(i):
            assert gaps[i, j] >= APART, f"{vector.id}: {name} and {names[j]} are {gaps[i, j]:.2%} apart"


@pytest.mark.parametrize("vector", APPLIED, ids=lambda v: v.id)
def test_it_tells_apart_what_it_is_for(vector: Vector) -> None:
    told = [w for w in vector.about["wrong_readings"] if w["for"]]
    assert told
    for wrong in told:
        assert wrong["distance"] >= APART


def test_no_size_hides_a_transposition() -> None:
    """No base has a square weight, and alpha is nowhere the rank."""
    for vector in ALL:
        for name, tensor in vector.base_tensors.items():
            assert tensor.dim() < 2 or tensor.shape[0] != tensor.shape[1], name


def _rows() -> list[str]:
    """The guide's table: kinds of vectors, how many, and the readings that they exist to tell apart."""
    kinds = {"refuse": "has to be refused", "apply_or_refuse": "unusual names: applied or refused"}
    rows: dict[str, tuple[list[str], set[str]]] = {}
    for vector in ALL:
        about = vector.about
        ids, told = rows.setdefault(kinds.get(about["expect"], about["source"]), ([], set()))
        ids.append(vector.id)
        told |= {w["id"] for w in about.get("wrong_readings", ()) if w["for"]}
    words = {kind: ", ".join(f"`{name}`" for name in sorted(told)) for kind, (_, told) in rows.items()}
    return [f"| {kind} | {len(ids)} | {words[kind]} |" for kind, (ids, _) in rows.items()]


def test_the_guide_tells_of_this_corpus() -> None:
    guide = (HOME.parents[1] / "docs" / "vectors.md").read_text(encoding="utf-8")
    assert [row for row in _rows() if row not in guide] == []
    wrong = sum(len(v.about["wrong_readings"]) for v in APPLIED)
    refused = len(ALL) - len(APPLIED)
    closest = min(v.about["closest_readings"] for v in APPLIED)
    for words in (
        f"{len(ALL)} folders, {len(APPLIED)} with a meaning and {refused} that have to be refused",
        f"wrong readings, {wrong} in all",
        f"the closest pair is {closest:.2%} apart".replace("%", " %"),
    ):
        assert words in guide

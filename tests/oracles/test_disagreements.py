"""The catalogue of disagreements: well formed, located, and what a subject on an author's side is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.engine.session import OF_AUTHORS, claims_for, load_checks
from oracles import __main__ as command
from oracles import registry
from oracles.authors.delora import DeloraAuthor
from oracles.disagreements import Disagreement, disagreements, explaining, plain, where
from oracles.equation import Equation
from oracles.implementation import AdapterSpec
from oracles.variants.record import COMMON_PARTS, Form
from refs import catalog as catalogue
from refs.errors import RefsError
from refs.locate import locate

FINDINGS = Path(__file__).parents[2] / "docs" / "reference_findings.md"
ENTRIES = disagreements()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_an_entry_is_whole(entry: Disagreement) -> None:
    assert entry.id.startswith(f"{entry.variant}.")
    assert len(entry.between) >= 2
    assert all((entry.what, entry.aspects, entry.measure, entry.smallest, entry.meaning))
    for oracle, checks in entry.differs.items():
        asked = OF_AUTHORS if registry.find(oracle, entry.variant).is_author else load_checks().keys()
        assert set(checks) <= asked
    assert json.loads(json.dumps(plain(entry)))["id"] == entry.id


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_an_entry_cites_both_sides(entry: Disagreement) -> None:
    aliases = [catalogue.parse_target(target)[0] for target in entry.where]
    assert {alias.split("_")[0] for alias in aliases} == {"peft", "orig"}
    for alias, label in zip(aliases, where(entry), strict=False):
        assert re.search(r":L\d+", label) if _is_here(alias) else "not synced" in label, label


def _is_here(alias: str) -> bool:
    try:
        return bool(locate(catalogue.load().reference(alias)))
    except RefsError:
        return False


def test_the_ids_are_unique_and_each_check_has_one_entry() -> None:
    assert len({d.id for d in ENTRIES}) == len(ENTRIES)
    pairs = [(d.variant, o, c) for d in ENTRIES for o, checks in d.differs.items() for c in checks]
    assert len(set(pairs)) == len(pairs)
    assert explaining("forward.gradients", "lora", "author") is None


def _authors_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    A, B = torch.randn(spec.rank, W.shape[1]), torch.randn(W.shape[0], spec.rank)
    start = {"A": A, "B": B, "lambda": torch.full((1,), spec.lambda0), "C": A.clone(), "D": B.clone()}
    return {name: value.double() for name, value in start.items()}


def test_a_subject_on_the_authors_side_fails_peft_and_passes_the_author() -> None:
    form = Form(
        DeloraAuthor.form().equation,
        {**COMMON_PARTS, "role.C": "buffer", "role.D": "buffer"},
        lambda W, spec, do: _authors_start(W, spec),
    )
    wanted = (
        "forward.random_parameters",
        "forward.gradients",
        "forward.effective_weight",
        "shapes.canonical",
    )
    claims = claims_for(
        Equation({"delora": form}, "on the author's side"),
        variants=["delora"],
        oracles=["peft", "author"],
        checks=lambda c: c.id in wanted,
    )
    found = {(c.check, c.oracle): c.outcome for c in claims}
    assert {found[check, "author"] for check in wanted} == {"pass"}
    assert {found[check, "peft"] for check in wanted} == {"fail"}
    assert all(c.cause == "references_disagree" for c in claims if c.oracle == "author")


def test_the_findings_are_written_from_the_catalogue() -> None:
    text = FINDINGS.read_text(encoding="utf-8")
    for entry in ENTRIES:
        for part in (entry.id, entry.what, entry.how_much, entry.smallest, entry.meaning):
            assert part in text, f"{entry.id}: run `python -m oracles findings --into {FINDINGS.name}`"


def test_the_command_replaces_what_is_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n", encoding="utf-8")
    assert command.main(["findings", "--into", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "delora.aliasing" in text


def test_a_file_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.md"
    path.write_text("mine\n", encoding="utf-8")
    assert command.main(["findings", "--into", str(path)]) == 2
    assert "lacks the lines" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine\n"

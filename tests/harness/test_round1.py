"""The previous round's library: the audit alone comes to the review that was written about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.engine.session import claims_for
from tests.replicas.round1 import Round1
from tests.subjects.judged import QUICK

ROOT = Path(__file__).parents[2]
VERDICTS = {
    "lora": "Partial",
    "pissa": "Partial",
    "dora": "Partial",
    "ia3": "Partial",
    "hra": "Buggy",
    "delora": "Buggy",
}
DROPOUT = ("BUG", "dropout.active", "dropout is accepted and does nothing")
ALPHA = ("BUG", "save_load.other_settings", "another alpha at load gives another model and is not refused")
AUTOCAST = ("OK-undoc", "contexts.autocast_dtype", "answers in another dtype than a plain layer")
# Per variant, every finding: its tag, a claim that it rests on, and words of its title.
FINDINGS = {
    "lora": (DROPOUT, ALPHA, AUTOCAST),
    "pissa": (
        DROPOUT,
        ALPHA,
        ("BUG", "save_load.other_base", "another base"),
        AUTOCAST,
        ("BUG", "init.principal", "factors leave α/r out: (α/r) B A is α/r times the principal part"),
    ),
    "dora": (DROPOUT, ALPHA, ("OK-doc", "forward.gradients", "gradient flows through ‖V‖"), AUTOCAST),
    "ia3": (("BUG", "shapes.modes", "its option changes nothing"), AUTOCAST),
    "hra": (
        ("BUG", "step0.dead_parameters", "scalar gate around the reflections starts at zero"),
        ("OK-undoc", "init.finite_modes", "divides by rounding noise"),
        ("OK-undoc", "shapes.undefined_rank", "taken without a word about it"),
        AUTOCAST,
    ),
    "delora": (
        DROPOUT,
        ("BUG", "forward.random_parameters", "one number, the Frobenius norm of W"),
        ("BUG", "init.deterministic", "λ starts at zero"),
        AUTOCAST,
        ("BUG", "shapes.roles", "another role"),
        ("BUG", "shapes.canonical", "tensors are not the reference's"),
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, int]:
    """audit.json, the review on standard output, and the exit status of one whole run."""
    document = tmp_path_factory.mktemp("round1") / "audit.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "harness/", "--report=-", "--subject",
            "tests/replicas/round1.py:Round1", "--audit-profile", "quick", "--oracle", "peft,paper",
            "--audit-json", str(document), "-q", "-p", "no:cacheprovider",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return json.loads(document.read_text(encoding="utf-8")), done.stdout, done.returncode


def test_verdicts(run: tuple[dict[str, Any], str, int]) -> None:
    """HRA and DeLoRA Buggy, the others Partial, exit 1."""
    document, _, status = run
    assert {v: found["verdict"] for v, found in document["verdicts"].items()} == VERDICTS
    assert status == 1


@pytest.mark.parametrize("variant", VERDICTS)
def test_findings(run: tuple[dict[str, Any], str, int], variant: str) -> None:
    """Each defect is one finding with its tag and its words, and there is no finding besides."""
    found = [f for f in run[0]["findings"] if f["variant"] == variant]
    left = list(found)
    for tag, check, words in FINDINGS[variant]:
        match = next((f for f in left if _is(f, tag, check, words)), None)
        assert match, f"no finding {tag} {check} {words!r} among {_shown(found)}"
        left.remove(match)
    assert not left, f"nobody put this in: {_shown(left)}"


def test_dropout_is_seen_in_dropout_alone(run: tuple[dict[str, Any], str, int]) -> None:
    """The layers have other mistakes: no claim that fails for one of those stands under this."""
    found = [f for f in run[0]["findings"] if f["title"] == DROPOUT[2]]
    assert len(found) == 4
    assert {claim.partition(".")[0] for f in found for claim in f["claims"]} == {"dropout"}


@pytest.mark.parametrize(
    ("variant", "oracle", "check", "mistake"),
    [
        ("dora", "author", "step0.gradients", "dora.norm_attached"),  # a recording, which has no other case
        ("delora", "paper", "dtype.double", "delora.scalar_norm"),  # asks nothing of a case in float32
    ],
)
def test_what_cannot_be_asked_explains_nothing(variant: str, oracle: str, check: str, mistake: str) -> None:
    """A mistake is named for a claim only where it alone makes the equation fail it."""
    (claim,) = claims_for(
        Round1(), variants=[variant], oracles=[oracle], checks=lambda c: c.id == check, profile=QUICK
    )
    assert [d.mistake for d in (claim.diagnosis, *claim.further) if d] == [mistake]


def _is(finding: dict[str, Any], tag: str, check: str, words: str) -> bool:
    rests = any(claim.startswith(f"{check}[") for claim in finding["claims"])
    return finding["tag"] == tag and rests and words in finding["title"]


def _shown(findings: list[dict[str, Any]]) -> list[str]:
    return [f"{f['tag']} {f['title']} {f['claims'][:3]}" for f in findings]


def test_review(run: tuple[dict[str, Any], str, int]) -> None:
    """The table says so too, and nothing but the review precedes it on standard output."""
    lines = run[1].splitlines()
    assert lines[0].startswith("#")
    for title, grade in (("HRA", "Buggy"), ("DeLoRA", "Buggy"), ("LoRA", "Partial"), ("PiSSA", "Partial")):
        assert any(re.match(rf"\| {title} \| \w+ \| {grade} \|", line) for line in lines), title

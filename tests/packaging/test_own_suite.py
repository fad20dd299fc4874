"""The claims inside somebody else's pytest suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.packaging import toy

SUITE = """
from adapter_conformance import parametrize_with_claims
from subject import Toy

ASKED = {"scale.effective", "init.identity", "merge.weight"}

@parametrize_with_claims(Toy(), oracles=["paper"], checks=ASKED.__contains__)
def test_adapters(claim):
    claim()
"""


def test_one_test_per_claim_with_its_record(tmp_path: Path) -> None:
    """A planted scale fails the claim about it and no other; a method that is not offered is a skip."""
    repository = toy.repository(tmp_path / "repository", wrong=True)
    (repository / "test_mine.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml=out.xml",
        "test_mine.py",
    ]
    done = subprocess.run(
        command, cwd=repository, env={"PYTHONPATH": str(toy.PACKAGE), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(repository / "out.xml").iter("testcase"):
        properties = {p.get("name"): p.get("value") for p in case.iter("property")}
        outcomes[properties["audit.claim"]] = properties["audit.outcome"]
        assert properties["audit.record"].startswith("{")
    assert outcomes["scale.effective[lora-paper]"] == "fail"
    assert outcomes["init.identity[lora-paper]"] == "pass"
    assert outcomes.get("merge.weight[lora-paper]", "not_applicable") == "not_applicable"

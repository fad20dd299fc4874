"""The action's own steps, run as a host would, on a toy repository: without network, with this interpreter."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml

from tests.packaging import toy

ACTION = yaml.safe_load((toy.ROOT / "action.yml").read_text())
EXPRESSION = re.compile(r"\$\{\{\s*([\w.-]+)\s*\}\}")


def steps(inputs: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The scripts of the action and their variables. A name that the action does not declare is a KeyError."""
    values = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()} | inputs
    told = {f"inputs.{name}": value for name, value in values.items()} | {"github.action_path": str(toy.ROOT)}

    def filled(text: str) -> str:
        return EXPRESSION.sub(lambda m: told[m[1]], text)

    assert not [s for s in ACTION["runs"]["steps"] if EXPRESSION.search(s["run"])], (
        "inputs reach scripts by env only"
    )
    return [(s["run"], {k: filled(v) for k, v in s.get("env", {}).items()}) for s in ACTION["runs"]["steps"]]


def ran(repository: Path, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The steps in their order; the first that fails ends the job."""
    environment = toy.environment(folder) | {"GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    for script, variables in steps({"install": "", **inputs}):
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=repository, env=environment | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done
    return done


def test_a_planted_bug_is_marked_on_its_line(tmp_path: Path) -> None:
    """One variant against the equations; the summary, the annotation, SARIF and the badge all say it."""
    repository = toy.repository(tmp_path / "repository", wrong=True)
    inputs = {"subject": "subject.py:Toy", "profile": "quick", "variants": "lora", "args": "--oracle paper"}
    done = ran(repository, tmp_path, **inputs)
    assert done.returncode == 1, done.stdout + done.stderr
    line = LINE_OF_FORWARD
    assert re.search(
        rf"^::error file=toylora\.py,line={line},endLine=\d+,title=lora D", done.stdout, re.MULTILINE
    )
    assert "| LoRA | **Buggy** |" in (tmp_path / "summary.md").read_text()
    sarif = json.loads((repository / "docs/audit/audit.sarif").read_text())
    places = [
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in sarif["runs"][0]["results"]
    ]
    assert "toylora.py" in places
    assert json.loads((repository / "docs/audit/badges/lora.json").read_text())["message"] == "Buggy"
    assert (repository / "docs/audit/variants_review_v2.md").is_file()


LINE_OF_FORWARD = next(n for n, text in enumerate(toy.LIBRARY.splitlines(), start=1) if "def forward" in text)


def test_what_cannot_be_used_ends_the_job(tmp_path: Path) -> None:
    repository = toy.repository(tmp_path / "repository")
    done = ran(repository, tmp_path, subject="nowhere.py:Toy")
    assert done.returncode == 4
    assert "there is no file nowhere.py" in done.stderr
    assert not (tmp_path / "summary.md").exists()


def test_a_right_library_passes(tmp_path: Path) -> None:
    """No error is marked; what is not offered is a warning, and no reason to fail."""
    repository = toy.repository(tmp_path / "repository")
    inputs = {"subject": "subject.py:Toy", "profile": "quick", "variants": "lora", "args": "--oracle paper"}
    done = ran(repository, tmp_path, **inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::error" not in done.stdout
    assert "| LoRA | **Partial** |" in (tmp_path / "summary.md").read_text()

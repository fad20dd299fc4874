"""The workflow to call: every input that it uses is declared, and every option that it gives is one that there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from adapter_conformance import shown
from adapter_conformance.audit import parser

from tests.packaging import toy
from tests.packaging.toy import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
OF_PYTEST = {
    "--subject",
    "--subject-python",
    "--audit-profile",
    "--shard",
    "--audit-json",
    "--sarif",
    "--report",
}


def test_every_input_is_declared_and_reaches_no_script() -> None:
    text = yaml.safe_dump(WORKFLOW["jobs"])
    declared = WORKFLOW[True]["workflow_call"]["inputs"]  # YAML's `on` is true
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(declared)
    assert not [s["run"] for s in STEPS if "${{" in s.get("run", "")]


def test_every_option_is_one_that_there_is() -> None:
    known = {o for p in (parser(), shown._parser()) for a in p._actions for o in a.option_strings} | OF_PYTEST
    ours = [line for s in STEPS for line in s.get("run", "").split("\n") if "adapter-conformance " in line]
    assert len(ours) == 3
    assert {o for line in ours for o in re.findall(r"--[a-z][\w-]*", line)} <= known


# The jobs themselves, by a small runner: no network and no docker; what is uploaded is kept in a folder.

INPUTS = {
    name: str(entry.get("default", "")) for name, entry in WORKFLOW[True]["workflow_call"]["inputs"].items()
}
ASKED = {
    "subject": "subject.py:Toy", "profile": "quick", "shards": "[1, 2]", "peft": '["", "0.12.0"]',
    "args": "--oracle paper --aspect scale",
}  # fmt: skip


def filled(text: str, told: Mapping[str, str]) -> str:
    """The text with its expressions replaced. Raises KeyError for what is no input and not of the matrix."""
    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda found: told[found[1]], text)


def cells(job: dict[str, Any], inputs: Mapping[str, str]) -> list[dict[str, str]]:
    """What each run of a job is told: its inputs, and its cell of the matrix."""
    axes = {
        name: json.loads(inputs[text.split("inputs.")[1].split(")")[0]])
        for name, text in job["strategy"]["matrix"].items()
    }
    told = {f"inputs.{name}": value for name, value in inputs.items()}
    return [
        told | {f"matrix.{n}": str(v) for n, v in zip(axes, cell, strict=True)}
        for cell in product(*axes.values())
    ]


def ran(job: dict[str, Any], told: Mapping[str, str], folder: Path, environment: dict[str, str]) -> None:
    """A job's own steps in their order; installing is left out."""
    for step in job["steps"]:
        if "run" in step and "pip install" not in step["run"]:
            variables = {name: filled(text, told) for name, text in step.get("env", {}).items()}
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            done = subprocess.run(
                command, cwd=folder, env=environment | variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr


def uses(job: dict[str, Any], action: str) -> dict[str, str]:
    """What a job's step hands to an action."""
    return next(s["with"] for s in job["steps"] if s.get("uses", "").startswith(action))


def test_shards_beside_two_releases_are_put_together(tmp_path: Path) -> None:
    """Each release gets the audit of its own shards, and its interpreter."""
    repository = toy.repository(tmp_path / "repository")
    (repository / ".beside" / "bin").mkdir(parents=True)
    environment, inputs = toy.environment(tmp_path), INPUTS | ASKED
    beside = repository / ".beside" / "bin" / "python"
    beside.write_text(f'#!/bin/sh\necho asked >> "{tmp_path}/beside"\nexec "{sys.executable}" "$@"\n')
    beside.chmod(0o755)
    shard, whole = WORKFLOW["jobs"]["shard"], WORKFLOW["jobs"]["whole"]
    for told in cells(shard, inputs):
        ran(shard, told, repository, environment)
        given = uses(shard, "actions/upload-artifact")
        kept = tmp_path / "kept" / filled(given["name"], told)
        kept.mkdir(parents=True)
        (repository / given["path"]).rename(kept / given["path"])
    assert len(list((tmp_path / "kept").iterdir())) == 4
    assert (tmp_path / "beside").read_text().split() == ["asked"] * 2
    for told in cells(whole, inputs):
        shutil.rmtree(repository / "shards", ignore_errors=True)
        given = uses(whole, "actions/download-artifact")
        for kept in (tmp_path / "kept").glob(filled(given["pattern"], told)):
            shutil.copytree(kept, repository / given["path"] / kept.name)
        summary = tmp_path / f"summary-{told['matrix.peft']}.md"
        ran(whole, told, repository, environment | {"GITHUB_STEP_SUMMARY": str(summary)})
        audit = json.loads((repository / "docs/audit/audit.json").read_text())
        assert audit["complete"]
        assert ("## Beside PEFT 0.12.0" in summary.read_text()) == (told["matrix.peft"] != "")
        assert "| LoRA |" in summary.read_text()

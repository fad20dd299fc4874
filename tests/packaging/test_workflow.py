"""The workflow to call: every input that it uses is declared, and every option that it gives is one that there is."""

from __future__ import annotations

import re

import yaml
from adapter_conformance import shown
from adapter_conformance.audit import parser

from tests.packaging.toy import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
OF_PYTEST = {"--subject", "--audit-profile", "--shard", "--audit-json", "--sarif", "--report"}


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

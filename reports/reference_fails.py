"""Checks that a reference fails when it is audited itself: a table (`reference_fails.toml`), made from such an audit.

``python -m reports fails AUDIT`` writes it from the `audit.json` of ``--subject peft``. A finding of another subject
that is in the table says so: "stricter than PEFT, which does the same".
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from reports.facts import SOURCES
from reports.model import Audit, Claim

TABLE = Path(__file__).with_name("reference_fails.toml")
HEAD = """# Written by `python -m reports fails AUDIT -o reports/reference_fails.toml` from the audit.json of an audit
# whose subject is the reference itself (`pytest harness/ --report --subject peft`): the checks that it fails, each
# with what it is due to where that is known.
"""


def table_of(audit: Audit) -> str:
    """The table of an audit whose subject is a reference."""
    lines = [HEAD + f"[{audit.run.subject.name}]", f'version = "{audit.run.subject.version}"', "fails = ["]
    entries = {(c.variant, c.check, c.mode or "", due_to(c) or "") for c in audit.run.claims if _fails(c)}
    names = ("variant", "check", "mode", "due_to")
    for entry in sorted(entries):
        words = ", ".join(f"{k} = {json.dumps(v)}" for k, v in zip(names, entry, strict=True))
        lines.append(f"    {{ {words} }},")
    return "\n".join([*lines, "]"]) + "\n"


def failing(claim: Claim, mistake: str | None) -> tuple[str, ...]:
    """The references that fail the claim's check for the same reason, each with its release."""
    wanted = {"variant": claim.variant, "check": claim.check, "mode": claim.mode or ""}
    due = mistake or due_to(claim) or ""
    return tuple(
        f"{SOURCES.get(name, name)} {known['version']}"
        for name, known in _table().items()
        if {**wanted, "due_to": due} in known["fails"]
    )


def due_to(claim: Claim) -> str | None:
    """What a claim fails by: the mistake it names, the option that is missing, else the quantity that is not right."""
    if claim.diagnosis is not None:
        return claim.diagnosis.mistake
    if claim.cause == "mode_missing":
        return claim.detail
    return claim.witness.quantity if claim.witness else None


def _fails(claim: Claim) -> bool:
    return claim.outcome == "fail" or claim.cause == "mode_missing"


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}

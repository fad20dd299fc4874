"""Findings as SARIF 2.1.0, for code hosts and editors that show results beside the lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urldefrag

from reports.model import Audit, CheckInfo, Cite, Finding
from reports.text import one_line

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"critical": "error", "major": "warning", "minor": "note", "none": "none"}


def render(audit: Audit) -> str:
    """The findings of an audit as a SARIF log."""
    rules = _rules(audit)
    index = {rule["id"]: place for place, rule in enumerate(rules)}
    results = [_result(audit, f, index) for f in audit.findings]
    driver = {"name": "lora-audit", "version": "1", "rules": rules}
    subject = f"{audit.run.subject.name} {audit.run.subject.version}"
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "automationDetails": {"id": one_line(f"audit/{subject}")},
                "columnKind": "unicodeCodePoints",
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=1) + "\n"


def _rules(audit: Audit) -> list[dict[str, Any]]:
    """The checks that the findings rest on, one rule each."""
    used = sorted({_check(audit, f) for f in audit.findings})
    return [_rule(check, audit.run.checks.get(check)) for check in used]


def _rule(check: str, info: CheckInfo | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": one_line(check)}
    if info:
        rule["shortDescription"] = {"text": one_line(info.title or check)}
        rule["fullDescription"] = {"text": one_line(info.question or info.title or check)}
        rule["defaultConfiguration"] = {"level": LEVELS[info.severity]}
    return rule


def _check(audit: Audit, finding: Finding) -> str:
    """The check of the finding's first claim."""
    return next((c.check for c in audit.run.claims if c.id == finding.claims[0]), finding.claims[0])


def _result(audit: Audit, finding: Finding, index: Mapping[str, int]) -> dict[str, Any]:
    rule = one_line(_check(audit, finding))
    words = f"{finding.variant} {finding.id} [{finding.tag}] {finding.title}"
    result: dict[str, Any] = {
        "ruleId": rule,
        "ruleIndex": index[rule],
        "level": LEVELS[finding.severity],
        "kind": "informational" if finding.severity == "none" else "fail",
        "message": {"text": one_line(f"{words} {finding.failure_mode}")},
        "locations": [_location(c) for c in finding.subject_cites if c.start is not None],
        "partialFingerprints": {"claims/v1": "|".join(one_line(c) for c in finding.claims)},
        "properties": {"tag": finding.tag, "severity": finding.severity, "new": finding.new},
    }
    related = [c for c in finding.reference_cites if c.start is not None and c.url]
    if related:
        result["relatedLocations"] = [_related(n, c) for n, c in enumerate(related)]
    return result


def _location(cite: Cite) -> dict[str, Any]:
    artifact = {"uri": quote(cite.alias)}
    return {"physicalLocation": {"artifactLocation": artifact, "region": _region(cite)}}


def _related(number: int, cite: Cite) -> dict[str, Any]:
    """A place in a reference, in words and as the page that shows it."""
    page = urldefrag(cite.url or "").url
    artifact = {"uri": quote(page, safe="/:?=&%@+,;~!$-._")}
    return {
        "id": number,
        "message": {"text": one_line(cite.label)},
        "physicalLocation": {"artifactLocation": artifact, "region": _region(cite)},
    }


def _region(cite: Cite) -> dict[str, Any]:
    return {"startLine": cite.start, "endLine": cite.end or cite.start}

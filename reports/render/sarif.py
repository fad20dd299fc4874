"""Findings as SARIF 2.1.0, for code hosts and editors that show results beside the lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urldefrag

from reports.model import Audit, CheckInfo, Cite, Claim, Finding
from reports.places import place_of
from reports.render.differences import difference
from reports.render.fixes import look_at
from reports.text import inline, one_line
from reports.version import TOOL, VERSION

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
INFORMATION = f"urn:{TOOL}:{VERSION}"  # the project has no page of its own yet
LEVELS = {"critical": "error", "major": "warning", "minor": "note", "none": "none"}


def render(audit: Audit) -> str:
    """The findings of an audit as a SARIF log; paths are those of the git repository that the audit ran in."""
    rules = _rules(audit)
    index = {rule["id"]: place for place, rule in enumerate(rules)}
    results = [_result(audit, f, index) for f in audit.findings]
    driver = {
        "name": TOOL, "version": VERSION, "semanticVersion": VERSION,
        "informationUri": INFORMATION, "rules": rules,
    }  # fmt: skip
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                # What a code host replaces by the next upload of the same: the subject, whatever its version.
                "automationDetails": {"id": one_line(f"audit/{audit.run.subject.name}/")},
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The repository's root."}}},
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
        rule["name"] = one_line(info.id.title().replace(".", "").replace("_", ""))
        rule["shortDescription"] = {"text": one_line(info.title or check)}
        rule["fullDescription"] = {"text": one_line(info.question or info.title or check)}
        rule["help"] = _help(info)
        rule["defaultConfiguration"] = {"level": LEVELS[info.severity]}
        rule["properties"] = {"tags": [one_line(info.aspect)]}
    return rule


def _help(info: CheckInfo) -> dict[str, str]:
    """What the check asks, how its failure shows, what to do: plain, and as markdown."""
    parts = {"Asked": info.question, "What goes wrong": info.failure_mode, "What to do": _remedy(info)}
    told = {head: words for head, words in parts.items() if one_line(words)}
    return {
        "text": one_line(" ".join(f"{head}: {words}" for head, words in told.items())) or one_line(info.id),
        "markdown": "\n\n".join(f"**{head}.** {inline(words)}" for head, words in told.items()),
    }


def _remedy(info: CheckInfo) -> str:
    words = look_at(info.id, info.aspect)
    return f"{words[:1].upper()}{words[1:]}."


def _check(audit: Audit, finding: Finding) -> str:
    """The check of the finding's first claim."""
    return next((c.check for c in audit.run.claims if c.id == finding.claims[0]), finding.claims[0])


def _result(audit: Audit, finding: Finding, index: Mapping[str, int]) -> dict[str, Any]:
    rule = one_line(_check(audit, finding))
    result: dict[str, Any] = {
        "ruleId": rule,
        "ruleIndex": index[rule],
        "level": LEVELS[finding.severity],
        "kind": "informational" if finding.severity == "none" else "fail",
        "message": {"text": _message(audit, finding)},
        "locations": [_location(audit, finding)],
        "partialFingerprints": {"finding/v1": _fingerprint(rule, finding)},
        "properties": {"tag": finding.tag, "severity": finding.severity, "new": finding.new},
    }
    related = [c for c in finding.reference_cites if c.start is not None and c.url]
    if related:
        result["relatedLocations"] = [_related(n, c) for n, c in enumerate(related)]
    return result


def _message(audit: Audit, finding: Finding) -> str:
    """What, how it fails, the smallest case with both values, what to do, and the command that asks again."""
    own = [c for c in audit.run.claims if c.id in finding.claims]
    title = finding.title.rstrip(".")
    words = [f"{finding.variant} {finding.id} [{finding.tag}] {title}: {finding.failure_mode}"]
    if own:
        told = difference(audit.run, finding, audit.run.claims)
        words += [f"Smallest case: {told.smallest}."] if told.smallest else []
        words += [f"Remedy: {remedy}."] if (remedy := _own_remedy(own)) else []
        words += [f"Replay: {told.replay}"] if told.replay else []
    return one_line(" ".join(words))


def _own_remedy(own: Sequence[Claim]) -> str:
    return next((c.diagnosis.remedy for c in own if c.diagnosis and c.diagnosis.remedy), "")


def _fingerprint(rule: str, finding: Finding) -> str:
    """The same for the same difference, on whatever lines and against however many oracles it shows."""
    parts = (finding.variant, rule, finding.mistake or "", finding.title)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _location(audit: Audit, finding: Finding) -> dict[str, Any]:
    place = place_of(audit.run, finding)
    artifact = {"uri": quote(place.path, errors="replace"), "uriBaseId": "%SRCROOT%"}
    region = {"startLine": place.start, "endLine": place.end}
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def _related(number: int, cite: Cite) -> dict[str, Any]:
    """A place in a reference, in words and as the page that shows it."""
    page = urldefrag(cite.url or "").url
    artifact = {"uri": quote(page, safe="/:?=&%@+,;~!$-._")}
    region = {"startLine": cite.start, "endLine": cite.end or cite.start}
    return {
        "id": number,
        "message": {"text": one_line(cite.label)},
        "physicalLocation": {"artifactLocation": artifact, "region": region},
    }

"""Documents of schema 1 read as schema 2: the only place where a sentence is taken apart.

Schema 1 said in sentences what schema 2 has fields for, and in a claim's id what mode it was asked in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from refs.vocabulary import ASPECTS
from reports import plain_values
from reports.errors import Malformed
from reports.judge.standing import standing
from reports.model import OracleInfo

MODE_MISSING, NOT_OFFERED = "mode missing:", "not offered: save_load:"
ID = re.compile(
    r"(?P<check>[^\[\]]+)\[(?P<variant>[^-\]]+)(?:-(?P<mode>.+))?-(?P<oracle>[^-\]]+)\]", re.DOTALL
)
# Outcome -> (how the sentence reads, its cause); the first that fits.
CAUSES: dict[str, tuple[tuple[str, str | None], ...]] = {
    "not_applicable": (
        (r"the references disagree here \((?P<detail>\S+)\)", "references_disagree"),
        (rf"{MODE_MISSING}\W*(?P<detail>[\w-]*)", "mode_missing"),
        (rf"{NOT_OFFERED}.*\b(?P<detail>save|load)$", "not_offered"),
        (rf"{NOT_OFFERED}(?P<detail>)", "not_offered"),
        (r".* offers no (?P<detail>\w+)$", "not_offered"),
        (r".* offers no ordinary ", "no_variant"),
        (r".*, which \S+ reports$", "told_elsewhere"),
        ("", "outside"),
    ),
    "unverified": (
        (r"broken wrapper:", "wrapper"),
        (r"the subject refused every case", "refused_all"),
        (r"the audit itself failed: (?P<detail>\w+)", "audit_failed"),
        (r"the oracle refused:|.* has no finite ", "oracle_refused"),
        (r"the subject(?:'s \S+)? has no slot (?P<detail>.*)", "no_slot"),
        ("", "oracle_silent"),
    ),
    "error": (
        (r".* (?:raised \w+|called sys\.exit\(.*\)) in ", "raised"),
        (r".* answers differently to the same call$", "unsteady"),
        (r".*no answer within ", "hangs"),
        (r"the subject changed .* and left it so$", "state_changed"),
        ("", "bad_answer"),
    ),
    "pass": ((r"the references disagree here \((?P<detail>\S+)\)", "references_disagree"),),
}


def lifted(document: Mapping[str, Any]) -> dict[str, Any]:
    """A valid document of schema 1 with the fields of schema 2. Raises Malformed for a plan that cannot be read."""
    claims = [_claim(c) for c in document["claims"]]
    generator = document["generator"]
    return {
        **document,
        "schema_version": 2,
        "generator": {**generator, "context": _context(generator["context"], claims)},
        "subject": {**document["subject"], "environment": None},
        "claims": claims,
        "findings": [_finding(f, claims, document["oracles"]) for f in document["findings"]],
    }


def _claim(data: Mapping[str, Any]) -> dict[str, Any]:
    reason = data["reason"]
    cause, detail = _cause(data["outcome"], reason or "")
    found = ID.fullmatch(data["id"])
    if reason and data["outcome"] == "not_applicable":
        reason = reason.removeprefix(MODE_MISSING).removeprefix(NOT_OFFERED).strip()
    return {
        **data,
        "witness": _witness(data["witness"]),
        "diagnosis": _diagnosis(data["diagnosis"]),
        "reason": reason,
        "cause": cause,
        "detail": detail,
        "mode": found["mode"] if found else None,
        "further": [],
    }


def _witness(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if data is None else {**data, "agree": [], "differ": [], "not_asked": [], "heard": []}


def _cause(outcome: str, reason: str) -> tuple[str | None, str | None]:
    for pattern, cause in CAUSES.get(outcome, ()):
        if found := re.match(pattern, reason):
            detail = found.groupdict().get("detail") or None
            return cause, _crash(reason) if outcome == "error" else detail
    return None, None


def _crash(reason: str) -> str:
    """What two crashes of one kind have in common: all but the numbers, and the model that was adapted."""
    return re.sub(r"\d+|(?<=adapt_model of )\w+", "#", reason)


def _diagnosis(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if data is None:
        return None
    of_a_check = data["mistake"].partition(".")[0] in ASPECTS
    return {**data, "source": "check" if of_a_check else "catalogue", "remedy": "", "place": ""}


def _context(context: Mapping[str, Any], claims: list[dict[str, Any]]) -> dict[str, Any]:
    asked = {c["id"] for c in claims}
    missing = [_key(i) for i in context["planned"] if i not in asked]
    return {**context, "docstring_parts": {}, "missing": missing}


def _key(claim_id: str) -> dict[str, Any]:
    found = ID.fullmatch(claim_id)
    if not found:
        raise Malformed(f"a planned claim is called {claim_id[:100]!r}, expected check[variant-oracle]")
    return found.groupdict()


def _finding(data: Mapping[str, Any], claims: list[dict[str, Any]], oracles: Any) -> dict[str, Any]:
    records = {c["id"]: plain_values.claim_from_plain(c) for c in claims}
    lead = records.get(data["claims"][0])
    sides = standing(lead, records.values(), [OracleInfo(**o) for o in oracles]) if lead else ((), (), ())
    mistake = lead.diagnosis.mistake if lead and lead.diagnosis else None
    known: dict[str, Any] = {"mistake": mistake, "heard": [], "stated": "", "also_fails": []}
    return {**data, **dict(zip(("agree", "differ", "not_asked"), map(list, sides), strict=True)), **known}

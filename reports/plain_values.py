"""Runs and audits as plain values (the inside of `audit.json`) and back.

What a subject hands over can hold anything; here it becomes bounded, valid JSON: floats rounded, NaN and
infinities as words, strings without lone surrogates and cut at a limit, unknown objects by their text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.model import (
    SCHEMA_VERSION,
    Audit,
    CheckInfo,
    Cite,
    Claim,
    Declaration,
    Diagnosis,
    DocstringPart,
    Finding,
    Key,
    OracleInfo,
    Prior,
    PriorFinding,
    PriorVariant,
    Run,
    Subject,
    VariantInfo,
    Verdict,
    Witness,
)
from reports.text import shortened
from reports.version import TOOL, VERSION

GENERATOR = {"name": TOOL, "version": VERSION}
LONGEST_TEXT, LONGEST_DOCSTRING, DEEPEST, MOST_ITEMS = 4000, 50_000, 6, 1000
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def rounded(value: float | None, digits: int = 3) -> float | None:
    """``value`` with so many significant digits."""
    return value if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def plain(value: Any, digits: int = 3, depth: int = 0) -> Any:
    """``value`` as JSON can hold it, whatever it is."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else f"{'-' * (value < 0)}about 2**{value.bit_length()}"
    if isinstance(value, float):
        return rounded(float(value), digits) if math.isfinite(value) else str(float(value))
    if depth > DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:MOST_ITEMS]
        return {text(k): plain(v, digits, depth + 1) for k, v in items}
    if isinstance(value, list | tuple):
        return [plain(v, digits, depth + 1) for v in value[:MOST_ITEMS]]
    return text(value)


def text(value: object, limit: int = LONGEST_TEXT) -> str:
    """The text of ``value``, encodable and bounded."""
    try:
        words = str(value)
    except Exception as error:
        words = f"<{type(value).__name__} whose text cannot be had: {type(error).__name__}>"
    return shortened(words.encode("utf-8", "backslashreplace").decode("utf-8"), limit)


def real(value: Any) -> float | None:
    """A number as `plain` wrote it."""
    return WORDS[value] if isinstance(value, str) else None if value is None else float(value)


def _fields(record: Any, *, digits: int = 3) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(record)]
    return {name: plain(getattr(record, name), digits) for name in names}


def claim_to_plain(claim: Claim) -> dict[str, Any]:
    """A claim with the keys of the schema."""
    data = _fields(dataclasses.replace(claim, witness=None, diagnosis=None, further=()))
    # A case is what was put in, not what was measured: its numbers are kept.
    data["witness"] = _fields(claim.witness, digits=9) if claim.witness else None
    data["diagnosis"] = _fields(claim.diagnosis) if claim.diagnosis else None
    data["further"] = [_fields(d) for d in claim.further]
    return data


def claim_from_plain(data: Mapping[str, Any]) -> Claim:
    """The claim that `claim_to_plain` wrote."""
    numbers = {"ratio": real(data["ratio"]), "threshold": real(data["threshold"])}
    witness = _witness(data["witness"]) if data["witness"] else None
    diagnosis = _diagnosis(data["diagnosis"]) if data["diagnosis"] else None
    further = tuple(map(_diagnosis, data.get("further", ())))
    return Claim(**{**data, **numbers, "witness": witness, "diagnosis": diagnosis, "further": further})


def _witness(data: Mapping[str, Any]) -> Witness:
    lists = {key: tuple(data.get(key, ())) for key in ("agree", "differ", "not_asked", "heard")}
    return Witness(**{**data, **lists})


def _diagnosis(data: Mapping[str, Any]) -> Diagnosis:
    return Diagnosis(**{**data, "documented_by": tuple(data["documented_by"])})


def cite_to_plain(cite: Cite, *, quoted: bool) -> dict[str, Any]:
    """A cite; a reference's lines stay out, a review takes them from the pinned file."""
    return _fields(cite if quoted else dataclasses.replace(cite, lines=()))


def cite_from_plain(data: Mapping[str, Any]) -> Cite:
    return Cite(**{**data, "lines": tuple(data["lines"])})


def prior_to_plain(prior: Prior | None) -> dict[str, Any] | None:
    if prior is None:
        return None
    variants = [
        {"variant": v.variant, "verdict": v.verdict, "findings": [_fields(f) for f in v.findings]}
        for v in prior.variants.values()
    ]
    subjects = [text(name) for name in prior.subjects]
    return {"title": text(prior.title), "subjects": subjects, "variants": variants}


def prior_from_plain(data: Mapping[str, Any] | None) -> Prior | None:
    if data is None:
        return None
    variants = {}
    for entry in data["variants"]:
        found = tuple(_prior_finding(f) for f in entry["findings"])
        variants[entry["variant"]] = PriorVariant(entry["variant"], entry["verdict"], found)
    return Prior(data["title"], variants, tuple(data.get("subjects", ())))


def _prior_finding(data: Mapping[str, Any]) -> PriorFinding:
    lists = {key: tuple(data[key]) for key in ("checks", "mistakes")}
    return PriorFinding(**{**data, **lists, "claims": dict(data.get("claims", {}))})


def context_to_plain(run: Run, prior: Prior | None) -> dict[str, Any]:
    """What the review and a later judgement need beyond the claims; it travels in ``generator``."""
    asked = {c.id for c in run.claims}
    missing = [key for key in run.planned if key.id not in asked]
    return {
        "checks": [_fields(c) for c in run.checks.values()],
        "variants": [_fields(v) for v in run.variants],
        "declarations": [_fields(d) for d in run.declarations],
        "docstrings": {text(k): text(v, LONGEST_DOCSTRING) for k, v in run.subject.docstrings.items()},
        "docstring_parts": {
            text(v): [_fields(part) for part in parts] for v, parts in run.subject.docstring_parts.items()
        },
        "quotes": [
            {"variant": text(v), "aspect": text(a), **cite_to_plain(c, quoted=True)}
            for (v, a), c in run.subject.quotes.items()
        ],
        "planned": [text(key.id) for key in run.planned] if missing else [],
        "missing": [_fields(key) for key in missing],
        "shard": None if run.shard is None else text(run.shard),
        "prior": prior_to_plain(prior),
    }


def _versions(environment: Mapping[str, str]) -> dict[str, str]:
    return {text(k): text(v) for k, v in sorted(environment.items())}


def run_to_plain(run: Run, prior: Prior | None = None) -> dict[str, Any]:
    """The part of the document that is known before judgement."""
    subject = {key: text(getattr(run.subject, key)) for key in ("name", "version", "ref")}
    versions = run.subject.environment
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": {**GENERATOR, "context": context_to_plain(run, prior)},
        "subject": {**subject, "environment": None if versions is None else _versions(versions)},
        "oracles": [_fields(o) for o in run.oracles],
        "environment": _versions(run.environment),
        "profile": {key: plain(run.profile.get(key)) for key in ("name", "examples", "seed")},
        "claims": [claim_to_plain(c) for c in run.claims],
    }


def run_from_plain(data: Mapping[str, Any]) -> Run:
    """The run behind a document."""
    context = data["generator"]["context"]
    claims = tuple(claim_from_plain(c) for c in data["claims"])
    return Run(
        _subject(data["subject"], context),
        tuple(OracleInfo(**o) for o in data["oracles"]),
        data["environment"],
        data["profile"],
        tuple(VariantInfo(**v) for v in context["variants"]),
        {c["id"]: CheckInfo(**{**c, "follows": tuple(c["follows"])}) for c in context["checks"]},
        claims,
        tuple(Declaration(**{**d, "words": tuple(d["words"])}) for d in context["declarations"]),
        tuple(data.get("reference_disagreements", ())),
        planned=_planned(context, claims),
        shard=context["shard"],
    )


def _planned(context: Mapping[str, Any], claims: Sequence[Claim]) -> tuple[Key, ...]:
    """The plan in its order: what was asked is known from the claims, the rest stands in ``missing``."""
    keys = [Key(**entry) for entry in context["missing"]]
    known = {key.id: key for key in (*keys, *(Key(c.check, c.variant, c.mode, c.oracle) for c in claims))}
    return tuple(known[i] for i in context["planned"] if i in known)


def _subject(data: Mapping[str, Any], context: Mapping[str, Any]) -> Subject:
    quotes = {}
    for entry in context["quotes"]:
        cite = {k: v for k, v in entry.items() if k not in ("variant", "aspect")}
        quotes[entry["variant"], entry["aspect"]] = cite_from_plain(cite)
    parts = {v: tuple(DocstringPart(**p) for p in ps) for v, ps in context.get("docstring_parts", {}).items()}
    return Subject(**data, docstrings=context["docstrings"], quotes=quotes, docstring_parts=parts)


def audit_to_plain(audit: Audit) -> dict[str, Any]:
    """The whole document, ``complete`` last."""
    return {
        **run_to_plain(audit.run, audit.prior),
        "findings": [_finding_to_plain(f) for f in audit.findings],
        "verdicts": {variant: _fields(v) for variant, v in audit.verdicts.items()},
        "reference_disagreements": plain(audit.run.reference_disagreements),
        "complete": True,
    }


def _finding_to_plain(finding: Finding) -> dict[str, Any]:
    data = _fields(dataclasses.replace(finding, reference_cites=(), subject_cites=()))
    data["reference_cites"] = [cite_to_plain(c, quoted=False) for c in finding.reference_cites]
    data["subject_cites"] = [cite_to_plain(c, quoted=True) for c in finding.subject_cites]
    return data


def audit_from_plain(data: Mapping[str, Any]) -> Audit:
    """The audit behind a complete document."""
    findings = tuple(_finding_from_plain(f) for f in data["findings"])
    verdicts = {variant: Verdict(**v) for variant, v in data["verdicts"].items()}
    prior = prior_from_plain(data["generator"]["context"]["prior"])
    return Audit(run_from_plain(data), findings, verdicts, prior)


def _finding_from_plain(data: Mapping[str, Any]) -> Finding:
    cites = {key: tuple(map(cite_from_plain, data[key])) for key in ("reference_cites", "subject_cites")}
    ids = {key: tuple(data[key]) for key in ("claims", "agree", "differ", "not_asked")}
    ids |= {key: tuple(data.get(key, ())) for key in ("heard", "also_fails")}
    return Finding(**{**data, **cites, **ids})

"""The prior review as data: read, matched with what this run found, and written for the next round."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from reports import files
from reports.errors import Malformed
from reports.model import Audit, Claim, Grade, Prior, PriorFinding, PriorVariant, Severity, Tag
from reports.order import GRADES, TAGS
from reports.verdicts import is_unverified

LARGEST = 2**20
FAITHFUL = ("Faithful", "Faithful-with-doc-gap")


def load_prior(path: Path) -> Prior:
    """The prior review at ``path``: TOML, or an earlier `audit.json`. Raises ReportsError."""
    if Path(path).suffix == ".json":
        from reports import audit_json  # it stores the prior, too

        return prior_of(audit_json.read(path), title=Path(path).name)
    raw = files.read_text(Path(path), LARGEST)
    try:
        return _parsed(tomllib.loads(raw), Path(path).name)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{Path(path).name} is not valid TOML: {str(error)[:200]}") from None


def _parsed(data: Mapping[str, Any], name: str) -> Prior:
    entries = data.get("variant")
    if not isinstance(entries, list) or not entries:
        raise Malformed(f"{name} holds no prior review: at least one [[variant]] is expected")
    variants = [_variant(entry, name) for entry in entries]
    twice = sorted({v.variant for v in variants if sum(v.variant == w.variant for w in variants) > 1})
    if twice:
        raise Malformed(f"{name} reviews {twice[0]!r} twice")
    return Prior(_words(data.get("title", name), f"{name}: title"), {v.variant: v for v in variants})


def _variant(entry: Any, name: str) -> PriorVariant:
    if not isinstance(entry, dict) or not isinstance(entry.get("variant"), str):
        raise Malformed(f"{name}: a [[variant]] without its `variant`")
    where = f"{name}: {entry['variant']!r}"
    verdict = entry.get("verdict")
    if verdict not in GRADES:
        raise Malformed(f"{where}: verdict {verdict!r} is none of {', '.join(GRADES)}")
    found = entry.get("finding", [])
    if not isinstance(found, list):
        raise Malformed(f"{where}: findings are written as [[variant.finding]]")
    return PriorVariant(entry["variant"], verdict, tuple(_finding(f, where) for f in found))


def _finding(entry: Any, where: str) -> PriorFinding:
    if not isinstance(entry, dict) or not {"id", "quote"} <= set(entry):
        raise Malformed(f"{where}: a finding needs an `id` and the quoted line, `quote`")
    unknown = sorted(set(entry) - {"id", "quote", "tag", "checks", "mistakes"})
    if unknown:
        raise Malformed(f"{where}: a finding has no `{unknown[0]}`")
    tag = entry.get("tag", "BUG")
    if tag not in TAGS:
        raise Malformed(f"{where}: tag {tag!r} is none of {', '.join(TAGS)}")
    lists = {k: _word_list(entry.get(k, []), f"{where}: {k}") for k in ("checks", "mistakes")}
    return PriorFinding(
        _words(entry["id"], f"{where}: id"), _words(entry["quote"], f"{where}: quote"), tag, **lists
    )


def _words(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{where} is not text")
    return value


def _word_list(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Malformed(f"{where} is not a list")
    return tuple(_words(v, where) for v in value)


def prior_of(audit: Audit, title: str) -> Prior:
    """What ``audit`` said, as the next round's prior review."""
    claims = {c.id: c for c in audit.run.claims}
    variants = {}
    for variant, verdict in audit.verdicts.items():
        mine = [f for f in audit.findings if f.variant == variant]
        found = [f for f in mine if not is_unverified(f, audit.run.claims)]
        told = tuple(
            PriorFinding(f.id, f.title, f.tag, *_asked([claims[i] for i in f.claims])) for f in found
        )
        variants[variant] = PriorVariant(variant, verdict.verdict, told)
    return Prior(title, variants)


def _asked(claims: Sequence[Claim]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checks and the mistakes that a finding is about: of its first claim, and of what explains it.

    The other claims show consequences; another defect can have the same ones.
    """
    mistakes = {c.diagnosis.mistake: None for c in claims if c.diagnosis}
    checks = {c.check: None for c in claims if c.diagnosis or c.check == claims[0].check}
    return tuple(checks), tuple(mistakes)


def matching(prior: PriorVariant | None, claims: Sequence[Claim]) -> PriorFinding | None:
    """The prior finding that tells of the defect behind ``claims``, if any does."""
    return next((old for old in (prior.findings if prior else ()) if tells_of(old, claims)), None)


def tells_of(old: PriorFinding, claims: Sequence[Claim]) -> bool:
    """Whether a prior finding is about the defect behind ``claims``: its mistake, else its check."""
    checks, mistakes = _asked(claims)
    if old.mistakes and mistakes:
        return bool(set(old.mistakes) & set(mistakes))
    return any(asks(old, check) for check in checks)


def asks(old: PriorFinding, check: str) -> bool:
    """Whether the check asks what the prior finding tells of."""
    return any(fnmatchcase(check, pattern) for pattern in old.checks)


def contradicts(prior: PriorVariant | None, known: PriorFinding | None, tag: Tag, severity: Severity) -> bool:
    """Whether a finding shows that the prior review was wrong."""
    if prior is None:
        return False
    if known is not None and (known.tag == "BUG") != (tag == "BUG"):
        return True
    grave: bool = severity in ("critical", "major")
    verdict: Grade = prior.verdict
    return verdict in FAITHFUL and (grave or tag == "BUG")

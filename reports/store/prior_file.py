"""The prior review read from a file: TOML, or the `audit.json` of an earlier run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refs.vocabulary import GRADES, TAGS
from reports.errors import Malformed
from reports.judge.prior import prior_of
from reports.model import Prior, PriorFinding, PriorVariant
from reports.store import audit_json, text_files

LARGEST = 2**20


def load_prior(path: Path) -> Prior:
    """The prior review at ``path``: TOML, or an earlier `audit.json`. Raises ReportsError."""
    if Path(path).suffix == ".json":
        return prior_of(audit_json.read(path), title=Path(path).name)
    raw = text_files.read_text(Path(path), LARGEST)
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
    title = _words(data.get("title", name), f"{name}: title")
    subjects = _word_list(data.get("subjects", []), f"{name}: subjects")
    return Prior(title, {v.variant: v for v in variants}, subjects)


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
    unknown = sorted(set(entry) - {"id", "quote", "tag", "checks", "mistakes", "claims"})
    if unknown:
        raise Malformed(f"{where}: a finding has no `{unknown[0]}`")
    tag = entry.get("tag", "BUG")
    if tag not in TAGS:
        raise Malformed(f"{where}: tag {tag!r} is none of {', '.join(TAGS)}")
    lists = {k: _word_list(entry.get(k, []), f"{where}: {k}") for k in ("checks", "mistakes")}
    claims = entry.get("claims", {})
    if not isinstance(claims, dict) or not all(
        type(cases) is int and cases >= 0 for cases in claims.values()
    ):
        raise Malformed(f"{where}: claims is not a table of claims' ids, each with its number of cases")
    id_, quote = (_words(entry[k], f"{where}: {k}") for k in ("id", "quote"))
    return PriorFinding(id_, quote, tag, **lists, claims=claims)


def _words(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{where} is not text")
    return value


def _word_list(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Malformed(f"{where} is not a list")
    return tuple(_words(v, where) for v in value)

"""`audit.json`: written whole, validated by the published schema, refused where it is not what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from reports import plain_values
from reports.errors import Incomplete, Malformed, OtherSchema, ShardOnly
from reports.judge.judgement import judge, ordered
from reports.judge.verdicts import missing_claims
from reports.model import SCHEMA_VERSION, Audit, Prior, Run
from reports.store import schema_1, text_files
from reports.text import listed

__all__ = ["dumps", "read", "read_partial", "read_shard", "write", "write_partial"]

LARGEST = 64 * 2**20
FOLDER = Path(__file__).parents[1]
SCHEMAS = {1: FOLDER / "audit.schema.1.json", SCHEMA_VERSION: FOLDER / "audit.schema.json"}
SCHEMA = SCHEMAS[SCHEMA_VERSION]  # what is written


def write(audit: Audit, path: Path) -> None:
    """The audit at ``path``. Raises OSError, and Malformed should the document break its own schema."""
    text_files.write_text(Path(path), dumps(audit))


def dumps(audit: Audit) -> str:
    """The document as text: keys in the schema's order, nothing but ASCII, so that it is safe on a terminal."""
    document = plain_values.audit_to_plain(audit)
    _validate(document, "the audit")
    return _encoded(document)


def write_partial(run: Run, path: Path, prior: Prior | None = None) -> None:
    """What is known before the run has ended: without findings, verdicts and `complete`. Raises OSError."""
    document = plain_values.run_to_plain(ordered(run), prior)
    text_files.write_text(
        Path(path), json.dumps(document, allow_nan=False) + "\n"
    )  # on one line: it is written often


def _encoded(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read(path: Path) -> Audit:
    """A complete audit. Raises ReportsError with one sentence for anything else."""
    audit = read_shard(path)
    if audit.run.shard is not None or missing_claims(audit.run):
        raise ShardOnly(
            f"{Path(path).name} is shard {audit.run.shard} of a run: put it together with the others first"
            " (`python -m reports merge`)"
        )
    return audit


def read_shard(path: Path) -> Audit:
    """A complete audit or one complete shard of it. Raises ReportsError."""
    document = _document(Path(path))
    if document.get("complete") is not True:
        raise Incomplete(
            f"{Path(path).name} has no `complete`: the run that wrote it did not reach its end"
            " (`render --allow-partial` shows what there is)"
        )
    _validate(document, Path(path).name)
    return _built(document, Path(path).name)


def read_partial(path: Path) -> Audit:
    """Whatever claims ``path`` holds, judged. Raises ReportsError."""
    document = _document(Path(path))
    whole = {"findings": [], "verdicts": {}, "reference_disagreements": [], **document, "complete": True}
    _validate(whole, Path(path).name)
    audit = _built(whole, Path(path).name)
    run = audit.run
    return judge(run, audit.prior) if missing_claims(run) or "complete" not in document else audit


def _built(document: Mapping[str, Any], name: str) -> Audit:
    """The audit, if its parts refer to each other as they should."""
    current = schema_1.lifted(document) if document["schema_version"] == 1 else document
    audit = plain_values.audit_from_plain(current)
    if len(audit.run.planned) != len(current["generator"]["context"]["planned"]):
        raise Malformed(f"{name} plans claims that neither `claims` nor `missing` describes")
    ids = [c.id for c in audit.run.claims]
    if len(set(ids)) != len(ids):
        raise Malformed(f"{name} holds a claim twice")
    unknown = {i for f in audit.findings for i in f.claims} - set(ids)
    if unknown:
        raise Malformed(f"{name}: a finding rests on a claim that is not there: {min(unknown)[:100]}")
    return audit


def _document(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``, of a schema version that can be read. Raises ReportsError."""
    raw = text_files.read_text(path, LARGEST)
    try:
        document = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path.name} is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise Malformed(f"{path.name} is no audit: it has no `schema_version`")
    version = document["schema_version"]
    if type(version) is not int or version not in SCHEMAS:
        found, known = json.dumps(version)[:40], listed(map(str, SCHEMAS))
        raise OtherSchema(f"{path.name} has schema version {found}; only {known} can be read")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


@lru_cache(maxsize=len(SCHEMAS))
def _validator(version: int) -> Any:
    schema = json.loads(SCHEMAS[version].read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _validate(document: Mapping[str, Any], name: str) -> None:
    """Raises Malformed with the place and the reason of the first fault."""
    version = document["schema_version"]
    errors: Iterator[Any] = _validator(version).iter_errors(document)
    error = next(errors, None)
    if error is not None:
        place = "/".join(str(p)[:60] for p in error.absolute_path) or "the document"
        raise Malformed(f"{name} breaks schema {version} at {place[:200]}: {error.message[:200]}")


def whole(run: Run) -> Run:
    """``run`` as if it had never been split: no shard, and nothing planned that was not asked."""
    return dataclasses.replace(run, shard=None, planned=())

"""Shards of one run put together: the audit as if it had never been split, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports import plain_values
from reports.errors import MergeRefused
from reports.judge.judgement import judge
from reports.judge.verdicts import missing_claims
from reports.model import Audit, Declaration, OracleInfo, Run

SAME = {
    "subject": lambda audit: audit.run.subject,
    "environment": lambda audit: audit.run.environment,
    "profile": lambda audit: audit.run.profile,
    "checks": lambda audit: audit.run.checks,
    "variants": lambda audit: audit.run.variants,
    "prior review": lambda audit: audit.prior,
}


def merged(shards: Mapping[str, Audit]) -> Audit:
    """The audit of all the shards (name -> shard). Raises MergeRefused."""
    if not shards:
        raise MergeRefused("there is nothing to merge")
    names, audits = list(shards), list(shards.values())
    _refuse_overlap(shards)
    for what, part in SAME.items():
        for name, audit in shards.items():
            if _frozen(part(audit)) != _frozen(part(audits[0])):
                raise MergeRefused(f"{names[0]} and {name} differ in their {what}")
    run = dataclasses.replace(
        audits[0].run,
        oracles=_oracles(shards),
        claims=tuple(c for a in audits for c in a.run.claims),
        declarations=_declarations(shards),
        reference_disagreements=_disagreements(a.run for a in audits),
        planned=tuple(dict.fromkeys(i for a in audits for i in a.run.planned)),
        shard=None,
    )
    _refuse_missing(run)
    _refuse_strangers(shards)
    return judge(run, audits[0].prior)


def _frozen(value: Any) -> str:
    """A text by which two values can be compared, whatever their order of keys."""
    return repr(sorted(value.items(), key=repr)) if isinstance(value, Mapping) else repr(value)


def _refuse_overlap(shards: Mapping[str, Audit]) -> None:
    seen: dict[str, str] = {}
    for name, audit in shards.items():
        for claim in audit.run.claims:
            if claim.id in seen:
                raise MergeRefused(f"{seen[claim.id]} and {name} overlap: both hold {claim.id}")
            seen[claim.id] = name


def _refuse_missing(run: Run) -> None:
    missing = missing_claims(run)
    if missing:
        raise MergeRefused(f"{len(missing)} claims are in none of the shards, {missing[0].id} among them")


def _refuse_strangers(shards: Mapping[str, Audit]) -> None:
    """A shard's plan holds every claim of the whole run, its siblings' too."""
    asked = {c.id for audit in shards.values() for c in audit.run.claims}
    for name, audit in shards.items():
        strangers = asked - {key.id for key in audit.run.planned}
        if audit.run.planned and strangers:
            raise MergeRefused(f"{name} belongs to another run: it does not know {min(strangers)}")
        if not audit.run.planned and len(shards) > 1:
            raise MergeRefused(f"{name} is no shard: it holds a whole run")


def _oracles(shards: Mapping[str, Audit]) -> tuple[OracleInfo, ...]:
    """Every oracle once, in the order of the first shard that has it; the same everywhere."""
    found: dict[tuple[str, str | None], tuple[OracleInfo, str]] = {}
    for name, audit in shards.items():
        for oracle in audit.run.oracles:
            known, where = found.setdefault((oracle.id, oracle.variant), (oracle, name))
            if known != oracle:
                raise MergeRefused(f"{where} and {name} differ in the reference {oracle.id}")
    return tuple(oracle for oracle, _ in found.values())


def _declarations(shards: Mapping[str, Audit]) -> tuple[Declaration, ...]:
    """Every declaration, with whether it occurred in any of the shards."""
    lists = [audit.run.declarations for audit in shards.values()]
    bare = [[dataclasses.replace(d, occurred=None) for d in declared] for declared in lists]
    if any(b != bare[0] for b in bare):
        raise MergeRefused("the shards differ in the subject's declared deviations")
    return tuple(
        dataclasses.replace(same[0], occurred=_occurred([d.occurred for d in same]))
        for same in zip(*lists, strict=True)
    )


def _occurred(answers: Sequence[bool | None]) -> bool | None:
    known = [a for a in answers if a is not None]
    return any(known) if known else None


def _disagreements(runs: Iterable[Run]) -> tuple[Mapping[str, Any], ...]:
    """What the shards say of the references, each entry once."""
    entries: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for entry in run.reference_disagreements:
            entries.setdefault(json.dumps(plain_values.plain(entry), sort_keys=True), entry)
    return tuple(entries.values())

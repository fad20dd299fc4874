"""What a session and its claims come to: the record that the reports are made from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.engine.checks import load_checks
from harness.engine.described import described
from harness.engine.session import Session, environment
from oracles import registry
from oracles.disagreements import disagreements, plain
from oracles.variants import VARIANTS
from reports.model import Claim, Declaration, Key, OracleInfo, Run, Subject, VariantInfo


def run_of(
    session: Session,
    claims: Sequence[Claim],
    *,
    root: Path = Path(),
    planned: Sequence[Key] = (),
    shard: str | None = None,
    subject: Subject | None = None,
    oracles: tuple[OracleInfo, ...] | None = None,
) -> Run:
    """What the reports are made from; ``subject`` and ``oracles`` where they have been described already.

    ``planned``: the claims of the whole audit, over all shards; ``shard``: which part this run asked.
    """
    return Run(
        subject or described(session),
        oracles_of(session) if oracles is None else oracles,
        environment(),
        {"name": session.profile.name, "examples": session.profile.examples, "seed": session.profile.seed},
        tuple(
            VariantInfo(v.id, v.title, v.paper, v.equation)
            for v in VARIANTS.values()
            if v.id in session.variants
        ),
        {id_: c.info for id_, c in load_checks().items()},
        tuple(claims),
        tuple(_concluded(d, claims) for d in session.declarations if d.variant in session.variants),
        reference_disagreements=tuple(
            plain(d) for variant in session.variants for d in disagreements(variant)
        ),
        root=root,
        planned=tuple(planned),
        shard=shard,
    )


def ref_of(ref: str, root: Path) -> str:
    """A subject's reference as it can be given again from the checkout, whatever folder this run started from.

    Inside the checkout: relative to it; elsewhere an absolute path stays as it was given.
    """
    path, _, attribute = ref.rpartition(":")
    if not path.endswith(".py"):
        return ref
    given = Path(path).expanduser()
    absolute = given.resolve()
    if absolute.is_relative_to(root):
        given = absolute.relative_to(root)
    elif not given.is_absolute():
        given = Path(os.path.relpath(absolute, root))
    return f"{given.as_posix()}:{attribute}"


def oracles_of(session: Session) -> tuple[OracleInfo, ...]:
    """Where every oracle of this selection comes from."""
    return tuple(_oracles(session))


def _oracles(session: Session) -> Iterator[OracleInfo]:
    """All but those that are absent, which say so in their claims."""
    for entry in registry.entries():
        if entry.id not in session.oracles or entry.variants.isdisjoint(session.variants):
            continue
        if found := entry.provenance():
            variant = next(iter(entry.variants)) if entry.is_author else None
            yield OracleInfo(entry.id, variant, **vars(found))


def _concluded(declared: Declaration, claims: Sequence[Claim]) -> Declaration:
    """The declaration with whether it occurred; None where this selection did not ask."""
    asked = [c for c in claims if declared.covers(c)]
    occurred = any(c.outcome == "declared" for c in asked) if asked else None
    return dataclasses.replace(declared, occurred=occurred)

"""From a run to an audit: claims become findings, findings become verdicts."""

from __future__ import annotations

import dataclasses

from reports import cites, plain_values
from reports.judge.findings import findings
from reports.judge.verdicts import audit_exit_code, verdicts
from reports.model import Audit, Prior, Run
from reports.order import sorted_claims

__all__ = ["audit_exit_code", "judge", "normalised", "ordered"]


def judge(run: Run, prior: Prior | None = None) -> Audit:
    """The audit of a run. The same run gives the same audit, in whatever order its claims arrived."""
    run = normalised(run)
    prior = prior if prior and prior.is_about(run.subject.name) else None
    found = findings(run, prior)
    return Audit(run, found, verdicts(run, found, prior), prior)


def ordered(run: Run) -> Run:
    """``run`` with its claims sorted and its sources quoted."""
    run = cites.with_quotes(run)
    return dataclasses.replace(run, claims=sorted_claims(run))


def normalised(run: Run) -> Run:
    """``run`` as it will be read back: claims sorted, numbers rounded, texts bounded, sources quoted."""
    run = ordered(run)
    plain = plain_values.run_to_plain(run)
    plain["reference_disagreements"] = plain_values.plain(run.reference_disagreements)
    return plain_values.run_from_plain(plain)

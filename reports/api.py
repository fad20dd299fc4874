"""What the harness calls at the end of a run: judge, write all that was asked for, give the exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from reports.errors import ReportsError
from reports.judge.judgement import audit_exit_code, judge
from reports.judge.verdicts import audit_failures, missing_claims
from reports.model import Audit, Prior, Run
from reports.render import html, markdown, sarif
from reports.store import audit_json, text_files
from reports.store.prior_file import load_prior


class Outputs(Protocol):
    """Where a run writes; None: not at all; a report of ``-`` goes to standard output."""

    @property
    def report(self) -> str | None: ...
    @property
    def audit_json(self) -> Path | None: ...
    @property
    def sarif(self) -> Path | None: ...
    @property
    def html(self) -> Path | None: ...
    @property
    def prior(self) -> Path | None: ...


def write(
    run: Run,
    outputs: Outputs,
    stdout: TextIO,
    say: Callable[[str], None],
    show: Callable[[Audit], None] = lambda audit: None,
    unasked: Sequence[str] = (),
) -> int:
    """Judge ``run``, ``show`` it, write its outputs; 0, 1 or 3, the exit code it deserves. Raises OSError.

    A shard leaves its claims for `python -m reports merge` and no review; a run in which claims are missing
    (``unasked``: those that this run, or this shard, should have concluded) leaves files that say so. A prior review
    that cannot be read is said, left out, and makes the exit code 1.
    """
    prior, refused = _prior(outputs.prior, say)
    audit = judge(run, prior)
    if failed := audit_failures(run.claims):
        say(f"the audit itself failed on {len(failed)} claims, first {failed[0].id}: {failed[0].reason}")
        say("this is a mistake of the audit, not of the subject: please report it, with the audit.json")
    show(audit)
    if unasked or (run.shard is None and missing_claims(run)):
        return _partial(audit, outputs, stdout, say, len(unasked) or len(missing_claims(run)))
    if outputs.audit_json:
        audit_json.write(audit, outputs.audit_json)
    if run.shard is None:
        _review(audit, outputs, stdout)
    return max(audit_exit_code(audit) if run.shard is None else _shard_code(audit), refused)


def _prior(path: Path | None, say: Callable[[str], None]) -> tuple[Prior | None, int]:
    try:
        return (load_prior(path) if path else None), 0
    except ReportsError as error:
        say(f"the prior review is left out: {error}")
        return None, 1


def _partial(audit: Audit, outputs: Outputs, stdout: TextIO, say: Callable[[str], None], missing: int) -> int:
    """What there is, marked as incomplete in every file; of a shard, the claims alone."""
    run = audit.run
    if outputs.audit_json:
        audit_json.write_partial(run, outputs.audit_json, audit.prior)
    if run.shard is None:
        _review(audit, outputs, stdout)
    what = "the review" if run.shard is None else f"shard {run.shard}"
    say(f"{missing} of {len(run.planned)} claims were not concluded: {what} is incomplete")
    return 3 if audit_failures(run.claims) else 1


def _shard_code(audit: Audit) -> int:
    """The exit code of one shard: what it asked, not what its siblings ask."""
    if audit_failures(audit.run.claims):
        return 3
    return int(any(c.outcome in ("fail", "unverified", "error") for c in audit.run.claims))


def _review(audit: Audit, outputs: Outputs, stdout: TextIO) -> None:
    if outputs.report == "-":
        text_files.write_stream(stdout, markdown.render(audit))
    elif outputs.report:
        text_files.write_text(Path(outputs.report), markdown.render(audit))
    if outputs.sarif:
        text_files.write_text(outputs.sarif, sarif.render(audit))
    if outputs.html:
        text_files.write_text(outputs.html, html.render(audit))

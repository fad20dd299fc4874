"""The terminal: progress while claims come in, and the table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from reports.judge.verdicts import audit_exit_code, missing_claims, nothing_verified
from reports.model import Audit, Claim
from reports.render.claim_rows import skipped
from reports.render.fixes import next_fixes
from reports.text import one_line, shortened

COLOURS = {
    "Buggy": "bold red",
    "Partial": "yellow",
    "Faithful-with-doc-gap": "cyan",
    "Faithful": "green",
    "critical": "bold red",
    "major": "yellow",
    "minor": "cyan",
    "none": "dim",
}
WIDEST, WIDEST_FAILURE = 100, 200


class Console:
    """Writes to one stream. Progress is shown on a terminal only; texts never reach it raw."""

    def __init__(self, stream: TextIO, total: int = 0) -> None:
        self._rich = RichConsole(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
        if not self._rich.is_terminal:
            self._rich.width = WIDEST
        self._counts: Counter[str] = Counter()
        self._progress: Progress | None = None
        self._total = total

    @property
    def has_bar(self) -> bool:
        """Whether progress is shown: on a terminal."""
        return self._rich.is_terminal

    def claim_done(self, claim: Claim) -> None:
        """Count a claim, and move the bar on."""
        self._counts[claim.outcome] += 1
        if not self.has_bar or not self._total:
            return
        if self._progress is None:
            self._progress = self._bar()
        self._progress.update(self._task, advance=1, claim=one_line(claim.id)[:60])
        self._progress.refresh()

    def _bar(self) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[claim]}", markup=False))
        bar = Progress(*columns, console=self._rich, auto_refresh=False, transient=True)
        self._task = bar.add_task("claims", total=self._total, claim="")
        bar.start()
        return bar

    def failures(self, claims: Iterable[Claim]) -> None:
        """A line for every claim that does not hold."""
        for claim in claims:
            if claim.outcome in ("fail", "error", "unverified"):
                words = one_line(f"{claim.outcome} {claim.id}: {claim.reason or 'no reason given'}")
                self._rich.print(Text(shortened(words, WIDEST_FAILURE)), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def summary(self, audit: Audit) -> None:
        """The verdicts and the findings of an audit."""
        self.close()
        missing = len(missing_claims(audit.run))
        if audit.run.shard:
            words = f"shard {audit.run.shard}: {len(audit.run.claims)} claims asked, {missing} elsewhere"
            self._rich.print(Text(words))
            return
        if missing:
            self._rich.print(Text(f"INCOMPLETE: {missing} claims are missing", style="bold red"))
        self._rich.print(_verdict_table(audit))
        found = [f for f in audit.findings if f.severity != "none"]
        if found:
            self._rich.print(_finding_table(audit))
        for d in audit.run.declarations:
            if d.occurred is False:
                words = f"stale declaration: {d.check} of {d.variant} against {d.oracle}"
                self._rich.print(Text(one_line(words), style="yellow"))
        ok = audit_exit_code(audit) == 0
        self._rich.print(Text(_closing(audit, ok), style="green" if ok else "red"))
        names = {v: _title(audit, v) for v in audit.verdicts}
        for fix in next_fixes(audit, names)[:1]:
            place = "".join(f" at {c.label}" for c in fix.places[:1])
            words = f"first to fix: {fix.who} {fix.ids}: {fix.why}. To mend: {fix.what}{place}"
            self._rich.print(Text(one_line(words), style=COLOURS[fix.severity]))


def _closing(audit: Audit, ok: bool) -> str:
    """What the run comes to, in a sentence."""
    if ok:
        return "every applicable claim is verified or declared"
    return "no claim could be verified" if nothing_verified(audit.run) else "not every claim holds"


def _title(audit: Audit, variant: str) -> str:
    return next((v.title for v in audit.run.variants if v.id == variant), variant)


def _verdict_table(audit: Audit) -> Table:
    table = _table(
        "variant", "verdict", "was", "verified", "not offered", "not applicable", "bugs", "doc gaps"
    )
    for variant, v in audit.verdicts.items():
        told = [c for c in audit.run.claims if c.variant == variant]
        bugs = sum(f.tag == "BUG" for f in audit.findings if f.variant == variant)
        counts = f"{v.verified} of {v.applicable}", *map(str, skipped(told)), str(bugs), str(v.doc_gaps)
        cells = (v.prior or "-", *counts)
        name = Text(one_line(_title(audit, variant)))
        table.add_row(name, Text(v.verdict, style=COLOURS[v.verdict]), *(Text(c) for c in cells))
    return table


def _finding_table(audit: Audit) -> Table:
    table = _table("variant", "id", "tag", "severity", "finding")
    for f in audit.findings:
        if f.severity != "none":
            severity = Text(f.severity, style=COLOURS[f.severity])
            table.add_row(
                Text(one_line(f.variant)), Text(f.id), Text(f.tag), severity, Text(one_line(f.title))
            )
    return table


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        # A heading is broken between its words, and numbers and the verdicts of one word never.
        widest = max(map(len, [*column.split(), "Faithful" if column == "verdict" else ""]))
        table.add_column(column, overflow="fold", no_wrap=column in ("was", "verified"), min_width=widest)
    return table

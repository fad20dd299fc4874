"""The controller: gathers claims from every worker, shows them come in, then judges and writes once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import clock
from harness.engine.checks import load_checks
from harness.engine.described import described
from harness.engine.run_record import oracles_of, run_of
from harness.plugin.options import Built
from refs.vocabulary import ASPECTS
from reports import api
from reports.model import Audit, Claim, OracleInfo, Run, Subject
from reports.plain_values import claim_from_plain
from reports.render.console import Console
from reports.store import audit_json

NAMES = {"failed": "claims that do not hold"}
LETTERS = {"passed": ".", "failed": "F", "skipped": "s"}
KEEP_EVERY = 50  # claims between two partial audit.json, for a run that is killed


class Collector:
    """On the controller: gathers claims from reports, shows them come in, then writes everything once."""

    def __init__(self, config: pytest.Config, built: Built) -> None:
        self.config, self.built = config, built
        self.claims: dict[str, Claim] = {}
        self.collected = False
        self.console: Console | None = None
        self.stdout = sys.stdout
        self.audit: Audit | None = None

    @property
    def writes(self) -> bool:
        """Whether this run is to leave any file."""
        outputs = self.built.outputs
        asked = (outputs.report, outputs.audit_json, outputs.sarif, outputs.html)
        return any(asked) and not self.config.option.collectonly

    def pytest_sessionstart(self) -> None:
        """A run that is killed, or that collects nothing, must not leave the review of an earlier one in its place."""
        outputs = self.built.outputs
        for path in (outputs.report, outputs.audit_json, outputs.sarif, outputs.html):
            if self.writes and path and path != "-":
                Path(path).unlink(missing_ok=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Serial runs: the claims that are going to be asked."""
        self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """Runs with workers: every worker collects the same."""
        self._plan(ids)

    def _plan(self, nodeids: Sequence[str]) -> None:
        asked = sum(claim_id(nodeid) is not None for nodeid in nodeids)
        if not asked or self.collected:
            return
        self.collected = True
        if self.writes:
            self._keep()
            stream = sys.stderr if self.built.outputs.report == "-" else sys.stdout
            self.console = Console(stream, asked)

    def _keep(self) -> None:
        """What there is so far, for a run that is killed."""
        if self.built.outputs.audit_json:
            with clock.charge("reports"):
                audit_json.write_partial(self._run(), self.built.outputs.audit_json)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Beside the audit's own bar, and where the review itself is printed, pytest's letters would be noise."""
        if self.console is None or not hasattr(report, "audit_claim") or self.config.option.verbose > 0:
            return None
        # Under a name of its own a failing claim is a line of ours, not a page of pytest's.
        bare = self.console.has_bar or self.built.outputs.report == "-"
        letter = "" if bare else LETTERS.get(report.outcome, "")
        return NAMES.get(report.outcome, report.outcome), letter, report.outcome.upper()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the claim that travels with a test's report."""
        if not (data := getattr(report, "audit_claim", None)):
            return
        claim = claim_from_plain(data)
        self.claims[claim.id] = claim
        if self.console is not None:
            self.console.claim_done(claim)
        if self.writes and len(self.claims) % KEEP_EVERY == 0:
            self._keep()

    def _run(self) -> Run:
        claims = [self.claims[id_] for id_ in self.built.own if id_ in self.claims]
        built = self.built
        shard = str(built.shard) if built.shard else None
        run = run_of(
            built.session,
            claims,
            root=built.root,
            planned=built.planned,
            shard=shard,
            subject=self.subject,
            oracles=self.oracles,
        )
        if built.aspects == tuple(ASPECTS):
            return run
        name = f"{run.profile['name']}, only the aspects {', '.join(built.aspects)}"
        return dataclasses.replace(run, profile={**run.profile, "name": name})

    @functools.cached_property
    def subject(self) -> Subject:
        """Read once: a run keeps what it has every few claims."""
        return described(self.built.session)

    @functools.cached_property
    def oracles(self) -> tuple[OracleInfo, ...]:
        """Likewise."""
        return oracles_of(self.built.session)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Judge, write, and let a stale declaration fail the run."""
        if not self.writes:
            return
        if not self.claims:
            why = "concluded" if self.collected else "asked"
            self._say(f"no claim was {why}: no review was written")
            return
        unasked = [id_ for id_ in self.built.own if id_ not in self.claims]
        try:
            with clock.charge("reports"):
                run, outputs = self._run(), self.built.outputs
                status = api.write(run, outputs, self.stdout, self._say, self._judged, unasked=unasked)
        except OSError as error:
            self._say(f"the review could not be written: {error}")
            status = 1
        if exitstatus in (0, 1):
            session.exitstatus = max(int(exitstatus), status)

    def _judged(self, audit: Audit) -> None:
        self.audit = audit

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A line for every claim that does not hold; with -v pytest has told them already."""
        if self.console is not None and self.config.option.verbose == 0:
            self.console.close()
            self.console.failures(self.claims[id_] for id_ in self.built.own if id_ in self.claims)

    def pytest_unconfigure(self) -> None:
        """Last on the screen: the table, what to fix first, and where everything went."""
        quiet = self.built.outputs.report == "-" and self.config.option.verbose < 0
        if self.console is None or self.audit is None:
            return
        self.console.close()
        if quiet:
            return
        self.console.summary(self.audit)
        self._where()

    def _where(self) -> None:
        outputs, shard, say = self.built.outputs, self.built.shard, self._say
        for what, path in (
            ("review", None if shard else outputs.report),
            ("audit.json", outputs.audit_json),
            ("HTML", None if shard else outputs.html),
        ):
            if path and path != "-":
                say(f"{what}: {shown(Path(path), self.built.root)}")
        if shard:
            say(f"shard {shard}: `python -m reports merge` joins all {shard.count} and writes the review")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr if self.built.outputs.report == "-" else self.stdout, flush=True)


def shown(path: Path, root: Path) -> str:
    """A path as a reader of the checkout writes it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def claim_id(nodeid: str) -> str | None:
    """The claim's id that a test's node id stands for: ``…/test_init.py::test_identity[lora-peft]``."""
    path, _, test = nodeid.partition("::")
    name, _, label = test.partition("[")
    for check in load_checks().values():
        module = inspect.getmodule(check.function)
        if module and Path(path).stem == module.__name__.rsplit(".")[-1] and check.function.__name__ == name:
            return f"{check.id}[{label}"
    return None

"""An audit from pytest's options to the written review: what is asked, what came back, what is written where."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import clock, deviations, examples, plugin, resolve, shards
from harness.claim import covers
from harness.profiles import PROFILES, Profile
from harness.session import Session, environment, load_checks
from oracles import registry
from oracles.disagreements import disagreements, plain
from oracles.implementation import Implementation
from oracles.variants import VARIANTS
from reports import api, audit_json
from reports.console import Console
from reports.model import Claim, Declaration, OracleInfo, Run, Subject, VariantInfo
from reports.serial import claim_from_plain

KEEP_EVERY = 50  # claims between two partial audit.json, for a run that is killed
ASPECTS = ("shapes", "init", "scale", "forward", "save_load", "targets", "dropout", "merge")
# The contract leaves the aspects' names open: a subject that says "initialisation" is understood.
SYNONYMS = {
    "shapes": ("parameter shapes", "parameters", "shape"),
    "init": ("initialisation", "initialization"),
    "scale": ("scale factor", "scaling"),
    "forward": ("forward equation",),
    "save_load": ("save/load", "save", "load"),
    "targets": ("target placement", "target"),
    "dropout": (),
    "merge": (),
}


@dataclass(frozen=True)
class Outputs:
    """Where the run writes; None: not at all."""

    report: str | None
    audit_json: Path | None
    sarif: Path | None
    html: Path | None
    prior: Path | None


@dataclass(frozen=True)
class Built:
    """A checked set of options: a session to ask, places to write."""

    session: Session
    ref: str
    outputs: Outputs
    root: Path
    planned: tuple[str, ...]  # ids of the whole audit, of all shards, whatever -k leaves out
    own: tuple[str, ...]  # those that this run is to ask
    shard: shards.Shard | None = None


def build(config: pytest.Config) -> Built:
    """Everything from the options, each bad one refused in a sentence (exit 4) before anything runs."""
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    load_checks()
    try:
        examples.database("")
        found = resolve.resolve(config.getoption("subject"))
        return _built(config, found)
    except (
        resolve.BadSubject,
        deviations.BadDeviations,
        shards.BadShard,
        examples.BadDatabase,
        BadOption,
    ) as error:
        raise pytest.UsageError(str(error)) from error


class BadOption(Exception):
    """An option's value cannot be used; the text is one sentence."""


def _built(config: pytest.Config, found: resolve.Resolved) -> Built:
    subject = found.implementation
    variants = _variants(config.getoption("variant"), subject)
    oracles = _oracles_named(config.getoption("oracle"))
    declared = _declarations(config.getoption("deviations"), found)
    session = Session(
        subject, variants, oracles, _profile(config), declared, ref_of(found.ref, config.rootpath)
    )
    planned, shard = session.planned(), shards.parse(config.getoption("shard"))
    own = shards.part_of(shard, planned)
    outputs = _outputs(config)
    return Built(session, session.ref, outputs, config.rootpath, tuple(planned), tuple(own), shard)


def _oracles_named(given: str | None) -> tuple[str, ...]:
    """`author` is every oracle of the authors."""
    asked = _chosen("--oracle", given, registry.ids())
    meant = {id_ for name in asked for id_ in (registry.named(name) if given else [name])}
    return tuple(id_ for id_ in registry.ids() if id_ in meant)


def _chosen(option: str, given: str | None, there: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return tuple(there)
    asked = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in asked if name not in there]
    if unknown or not asked:
        raise BadOption(f"{option} {given!r}: expected one or more of {', '.join(there)}")
    return tuple(name for name in there if name in asked)


def _variants(given: str | None, subject: Implementation) -> tuple[str, ...]:
    chosen = _chosen("--variant", given, list(VARIANTS))
    offered = tuple(v for v in chosen if v in subject.variants)
    if not offered:
        raise BadOption(
            f"--variant {given!r}: {subject.name} offers only {', '.join(sorted(subject.variants))}, nothing is left"
        )
    return offered


def _profile(config: pytest.Config) -> Profile:
    name = config.getoption("audit_profile")
    if name not in PROFILES:
        raise BadOption(f"--audit-profile {name!r}: expected one of {', '.join(PROFILES)}")
    seed = _seed(config.getoption("hypothesis_seed", None))
    return Profile(name, PROFILES[name], seed, caps=name == "quick")


def _seed(given: Any) -> int:
    if given is None:
        return 0
    try:
        return int(given)
    except ValueError:
        raise BadOption(
            f"--hypothesis-seed {given!r}: expected a whole number (the audit has no random runs)"
        ) from None


def _declarations(given: str | None, found: resolve.Resolved) -> tuple[Declaration, ...]:
    path = Path(given) if given else found.declarations
    if path is None:
        return ()
    if given and not path.is_file():
        raise BadOption(f"--deviations {given!r}: there is no such file")
    return deviations.load(path, docstrings(found.implementation))


def _outputs(config: pytest.Config) -> Outputs:
    report = config.getoption("report")
    root = config.rootpath
    if report == "":
        report = str(root / plugin.REPORT)
    if report and report != "-":
        report = str(_target("--report", report, None))
    return Outputs(
        report,
        _target("--audit-json", config.getoption("audit_json"), root / plugin.AUDIT_JSON if report else None),
        _target("--sarif", config.getoption("sarif"), None),
        _target("--html", config.getoption("html"), None),
        _prior(config.getoption("prior"), root / plugin.PRIOR),
    )


def _target(option: str, given: str | None, default: Path | None) -> Path | None:
    """A path that can be written. Raises BadOption for a folder, or a place where nothing can be made."""
    path = Path(given).absolute() if given else default
    if path is None:
        return None
    if path.is_dir():
        raise BadOption(f"{option} {given or path} is a directory, expected a file to write")
    folder = next(p for p in path.parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.exists():
            path.open("r+b").close()
    except OSError as error:
        raise BadOption(f"{option} {given or path} cannot be written: {error.strerror} ({folder})") from error
    return path


def _prior(given: str | None, default: Path) -> Path | None:
    if given is None:
        return default if default.is_file() else None
    if not Path(given).is_file():
        raise BadOption(f"--prior {given!r}: there is no such file")
    return Path(given)


def docstrings(subject: Implementation) -> dict[str, str]:
    """Per variant, the text in which the subject states its choices: docstrings of the sources it names."""
    from harness.docstrings import docstrings_of

    texts = {}
    for variant in sorted(subject.variants):
        found = dict.fromkeys(s for aspect in ASPECTS if (s := source_of(subject, variant, aspect)))
        own = inspect.getdoc(type(subject)) or ""
        texts[variant] = "\n".join([own, *(docstrings_of(path, symbol) for path, symbol in found)])
    return texts


def source_of(subject: Implementation, variant: str, aspect: str) -> tuple[Path, str] | None:
    """``subject.source``, asked under the aspect's other names too; None for whatever is no answer."""
    for name in (aspect, *SYNONYMS[aspect]):
        try:
            found = subject.source(variant, name)
        except Exception:
            continue
        if isinstance(found, tuple) and len(found) == 2:
            return Path(found[0]), str(found[1])
    return None


def described(built: Built) -> Subject:
    """The subject as the reports show it: where its code is, and what its docstrings say."""
    session, subject = built.session, built.session.subject
    sources = {
        (variant, aspect): place
        for variant in session.variants
        for aspect in ASPECTS
        if (place := source_of(subject, variant, aspect))
    }
    return Subject(subject.name, subject.version, built.ref, sources, docstrings(subject))


def run_of(built: Built, claims: Sequence[Claim], subject: Subject | None = None) -> Run:
    """What the reports are made from; ``subject`` where it has been described already."""
    session = built.session
    return Run(
        subject or described(built),
        tuple(_oracles(session)),
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
        root=built.root,
        planned=built.planned,
        shard=str(built.shard) if built.shard else None,
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


def _oracles(session: Session) -> Iterator[OracleInfo]:
    """Where every oracle of this selection comes from; one that is absent says so in its claims."""
    for entry in registry.entries():
        if entry.id not in session.oracles or entry.variants.isdisjoint(session.variants):
            continue
        if found := entry.provenance():
            variant = next(iter(entry.variants)) if entry.is_author else None
            yield OracleInfo(entry.id, variant, **vars(found))


def _concluded(declared: Declaration, claims: Sequence[Claim]) -> Declaration:
    """The declaration with whether it occurred; None where this selection did not ask."""
    asked = [c for c in claims if covers(declared, c)]
    occurred = any(c.outcome == "declared" for c in asked) if asked else None
    return dataclasses.replace(declared, occurred=occurred)


class Collector:
    """On the controller: gathers claims from reports, shows them come in, then writes everything once."""

    def __init__(self, config: pytest.Config, built: Built) -> None:
        self.config, self.built = config, built
        self.claims: dict[str, Claim] = {}
        self.collected = False
        self.console: Console | None = None
        self.stdout = sys.stdout

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
            audit_json.write_partial(self._run(), self.built.outputs.audit_json)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """With the audit's own progress on the terminal, pytest's letters would be noise."""
        if self.console is None or not hasattr(report, "audit_claim") or self.config.option.verbose > 0:
            return None
        return report.outcome, "", report.outcome.upper()

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
        return run_of(self.built, claims, self.subject)

    @functools.cached_property
    def subject(self) -> Subject:
        """Read once: a run keeps what it has every few claims."""
        return described(self.built)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Judge, write, and let a stale declaration fail the run."""
        if not self.writes:
            return
        self._say("")
        if not self.collected:
            self._say("no claim was asked: no review was written")
            return
        unasked = [id_ for id_ in self.built.own if id_ not in self.claims]
        show = self.console.summary if self.console else lambda audit: None
        try:
            with clock.charge("reports"):
                run, outputs = self._run(), self.built.outputs
                status = api.write(run, outputs, self.stdout, self._say, show, unasked=unasked)
        except OSError as error:
            self._say(f"the review could not be written: {error}")
            status = 1
        if exitstatus in (0, 1):
            session.exitstatus = max(int(exitstatus), status)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say where everything went."""
        outputs = self.built.outputs
        shard = self.built.shard
        for what, path in (
            ("review", None if shard else outputs.report),
            ("audit.json", outputs.audit_json),
            ("HTML", None if shard else outputs.html),
        ):
            if self.console is not None and path and path != "-":
                terminalreporter.write_line(f"{what}: {shown(Path(path), self.built.root)}")
        if shard and self.console is not None:
            terminalreporter.write_line(
                f"shard {shard}: `python -m reports merge` joins all {shard.count} and writes the review"
            )

    def _say(self, line: str) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(line)


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

"""From pytest's options to a checked audit: every bad value refused in a sentence before anything runs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cases import example_database
from harness.cases.profiles import PROFILES, Profile
from harness.engine import declarations
from harness.engine.checks import load_checks
from harness.engine.described import docstrings
from harness.engine.run_record import ref_of
from harness.engine.session import Session
from harness.plugin import defaults, shards
from harness.subjects import resolve
from oracles import registry
from oracles.implementation import Implementation
from oracles.variants import VARIANTS
from refs.vocabulary import ASPECTS
from reports.model import Declaration, Key


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
    planned: tuple[Key, ...]  # the whole audit, all its shards, whatever -k leaves out
    own: tuple[str, ...]  # those that this run is to ask
    shard: shards.Shard | None = None
    aspects: tuple[str, ...] = tuple(ASPECTS)


def build(config: pytest.Config) -> Built:
    """Everything from the options, each bad one refused in a sentence (exit 4) before anything runs."""
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    load_checks()
    try:
        example_database.database("")
        found = resolve.resolve(config.getoption("subject"), _place(config))
        return _built(config, found)
    except (
        resolve.BadSubject,
        declarations.BadDeviations,
        shards.BadShard,
        example_database.BadDatabase,
        BadOption,
    ) as error:
        raise pytest.UsageError(str(error)) from error


def _place(config: pytest.Config) -> resolve.Place:
    """Where the subject is to run, and who shows the progress of setting that up."""
    python = config.getoption("subject_python")
    # Not resolved: a virtual environment's interpreter is a link that has to be called by its own name.
    path = Path(python).expanduser().absolute() if python else None
    return resolve.Place(
        path, config.getoption("offline"), lambda line: print(line, file=sys.stderr, flush=True)
    )


class BadOption(Exception):
    """An option's value cannot be used; the text is one sentence."""


def _built(config: pytest.Config, found: resolve.Resolved) -> Built:
    subject = found.implementation
    variants = _variants(config.getoption("variant"), subject)
    oracles = _oracles_named(config.getoption("oracle"))
    declared = _declarations(config.getoption("deviations"), found)
    session = Session(
        subject, variants, oracles, _profile(config), declared, ref_of(found.ref, config.rootpath),
        config.getoption("subject_python"),
    )  # fmt: skip
    aspects = _chosen("--aspect", config.getoption("aspect"), tuple(ASPECTS))
    checks, shard = load_checks(), shards.parse(config.getoption("shard"))
    planned = [key for key in session.planned() if checks[key.check].info.aspect in aspects]
    own = shards.part_of(shard, [key.id for key in planned])
    outputs = _outputs(config)
    return Built(session, session.ref, outputs, config.rootpath, tuple(planned), tuple(own), shard, aspects)


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
    return declarations.load(path, docstrings(found.implementation))


def _outputs(config: pytest.Config) -> Outputs:
    report = config.getoption("report")
    root = config.rootpath
    if report == "":
        report = str(root / defaults.REPORT)
    if report and report != "-":
        report = str(_target("--report", report, None))
    return Outputs(
        report,
        _target(
            "--audit-json", config.getoption("audit_json"), root / defaults.AUDIT_JSON if report else None
        ),
        _target("--sarif", config.getoption("sarif"), None),
        _target("--html", config.getoption("html"), None),
        _prior(config.getoption("prior"), root / defaults.PRIOR),
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

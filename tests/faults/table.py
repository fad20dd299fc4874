"""The table of reports: what is in `faults.toml`, checked, and the audits that it asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.audits import Run

TABLE = Path(__file__).with_name("faults.toml")
NEEDED = {"id", "kind", "said", "bad", "good", "variant", "checks", "right"}
# What every audit asks besides what the reports are about, so that something wrong elsewhere shows.
BROAD = (
    "shapes.canonical", "shapes.roles", "init.deterministic", "init.identity", "step0.gradients",
    "forward.random_parameters", "forward.gradients", "forward.eval_mode", "dtype.output", "dropout.placement",
    "merge.weight", "save_load.round_trip", "training.sgd", "lifecycle.output", "lifecycle.merged",
)  # fmt: skip

AGAINST_PEFT = (
    "targets."  # questions that are answered by the PEFT of the audit, which needs a process of its own
)


class BadTable(Exception):
    """The table cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class Fault:
    """One report: two releases of a library, and what a right name of what is wrong in the first contains."""

    id: str
    library: str
    kind: str
    said: str
    link: str
    bad: str
    good: str
    variant: str
    checks: tuple[str, ...]
    right: str
    ref: str
    package: str
    requires: tuple[str, ...]
    here: bool = True  # whether it can be audited in the process that asks
    overrides: tuple[str, ...] = ()  # versions to install whatever a package asks for
    excludes: tuple[str, ...] = ()  # packages not to install though one asks for them
    shared: str = ""  # why the later release has a finding of the same name, where that is another fault

    def requirements(self, release: str) -> tuple[str, ...]:
        """What a release is installed with."""
        return (f"{self.package}=={release}", *self.requires)


@dataclass(frozen=True)
class Outside:
    """A report that the audit does not ask about, and why."""

    link: str
    because: str


def load(path: Path = TABLE) -> tuple[list[Fault], list[Outside]]:
    """The reports, and those outside the audit's scope. Raises BadTable."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    faults = [_fault(entry, told.get("subject", {})) for entry in told.get("fault", [])]
    twice = [f.id for i, f in enumerate(faults) if f.id in [g.id for g in faults[:i]]]
    if twice:
        raise BadTable(f"{path.name} has {twice[0]} twice")
    return faults, [Outside(**entry) for entry in told.get("outside", [])]


def _fault(entry: dict[str, Any], subjects: dict[str, Any]) -> Fault:
    name = entry.get("id", "a fault without an id")
    lacking = sorted(NEEDED - entry.keys())
    if lacking:
        raise BadTable(f"{name} has no {', '.join(lacking)}")
    subject = subjects.get(entry.pop("subject", name.partition("-")[0]))
    if subject is None:
        raise BadTable(f"{name} is of a subject that the table has not; it has {', '.join(subjects)}")
    try:
        re.compile(entry["right"])
    except re.error as error:
        raise BadTable(f"{name}: {entry['right']!r} is no regular expression: {error}") from error
    link = entry.pop("link", None) or subject["url"] + name.split("-")[1]
    requires = tuple(entry.pop("requires", subject.get("requires", ())))
    return Fault(
        library=name.partition("-")[0],
        link=link,
        ref=subject["ref"],
        package=subject["package"],
        requires=requires,
        here=subject.get("here", True),
        overrides=tuple(subject.get("overrides", ())),
        excludes=tuple(subject.get("excludes", ())),
        **{**entry, "checks": tuple(entry["checks"])},
    )


def runs(faults: Sequence[Fault], profile: str = "quick") -> list[Run]:
    """The audits that the reports ask for, each release and variant once, with the checks of all its reports."""
    wanted: dict[Run, set[str]] = {}
    for fault in faults:
        for release in (fault.bad, fault.good):
            wanted.setdefault(_place(fault, release), set(BROAD)).update(fault.checks)
    found = [
        replace(place, concerns=tuple(sorted(checks)), profile=profile) for place, checks in wanted.items()
    ]
    return sorted(found, key=lambda run: not run.here)  # the quick ones first


def run_of(fault: Fault, release: str, among: Iterable[Run]) -> Run:
    """The audit of one of a fault's releases."""
    place = _place(fault, release)
    return next(run for run in among if replace(run, concerns=(), profile=place.profile) == place)


def _place(fault: Fault, release: str) -> Run:
    """What is audited for a report on one of its releases, but for the checks."""
    here = fault.here and not any(check.startswith(AGAINST_PEFT) for check in fault.checks)
    environment = {"overrides": fault.overrides, "excludes": fault.excludes}
    return Run(fault.ref, fault.requirements(release), fault.variant, only=True, here=here, **environment)

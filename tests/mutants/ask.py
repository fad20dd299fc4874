"""One mutant, asked in a process of its own: the mutated text stands in for the file, the audit's claims decide."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUBJECT = ("lora_lite", "harness.subjects")
AUDIT = (*SUBJECT, "harness", "oracles", "reports", "refs")
ORACLES = ("peft", "paper")  # the authors' code would kill some more, at several times the price
VARIANTS = tuple(sorted(p.stem for p in (ROOT / "src/lora_lite/variants").glob("[a-z]*.py")))
LORAS = ("lora", "dora", "pissa")
# The likeliest to notice come first; which claim kills is the first one in this order, whatever the machine.
FIRST = (
    "forward.random_parameters", "init.deterministic", "step0.gradients", "shapes.canonical", "forward.modes",
    "init.identity", "init.distribution", "init.principal", "init.residual", "merge.weight", "merge.detach",
    "save_load.round_trip", "forward.gradients", "dropout.placement", "dtype.output", "dtype.forward",
)  # fmt: skip
LAST = ("training.", "targets.")
# Files of no one variant: those variants that go through all of their ways, and the questions that are about them.
OF_FILE = {
    "target": ("lora", "ia3"),  # one table for (IA)³, one for all others
    "kinds": ("lora", "dora", "ia3"),
    "switch": ("lora", "ia3", "hra"),  # adapters that add up, multiply, and are chained
    "merging": ("lora", "ia3", "dora"),
    "peft_config": ("lora", "dora", "ia3", "hra", "delora"),
}
ABOUT = {
    "kinds": ("layers.",),
    "switch": ("lifecycle.",),
    "merging": ("merge.", "lifecycle.merge", "lifecycle.unmerge"),
    "peft_config": ("checkpoints.", "save_load.interchange"),
}
KILLS = ("fail", "error", "unverified")

Say = Callable[[tuple[str, str]], None]


def subjects_of(file: str) -> tuple[str, ...]:
    """Who is audited when this file is broken: a broken oracle stands trial before the other references, and is then
    itself asked about a subject that agrees with the unbroken one."""
    equation = "oracles.equation:Equation" if file.startswith("oracles/variants/") else None
    oracle = "peft" if file == "oracles/peft.py" else equation
    return (oracle, "lora_lite") if oracle else ("lora_lite",)


def variants_of(file: str) -> tuple[str, ...]:
    """The variants that run through the file."""
    stem = Path(file).stem
    if stem == "lora":
        return LORAS
    return (stem,) if stem in VARIANTS else OF_FILE.get(stem, VARIANTS)


def load(file: str, source: str) -> None:
    """From now on, importing ``file`` runs ``source``; what was imported before is forgotten."""
    path, original = str(ROOT / file), importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> CodeType | None:
        return compile(source, path, "exec") if self.path == path else original(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
    stale = AUDIT if file.startswith("oracles/") else SUBJECT
    for name in [n for n in sys.modules if n.startswith(stale)]:
        del sys.modules[name]


def outcomes(file: str, examples: int) -> Iterator[tuple[str, str]]:
    """(claim, outcome) of every claim that concerns ``file``, the likeliest to fail first."""
    for i, ref in enumerate(subjects_of(file)):
        session = session_on(ref, file, examples)
        for key in ordered(session, file):
            claim = session.run(key, lambda claim: None).conclude()
            yield (f"{ref}: {claim.id}" if i else claim.id), claim.outcome


def session_on(ref: str, file: str, examples: int) -> Any:
    """The audit of one subject that runs through ``file``."""
    from harness.cases.profiles import Profile
    from harness.engine import declarations
    from harness.engine.described import docstrings
    from harness.engine.session import Session, load_checks
    from harness.subjects import resolve

    load_checks()
    found = resolve.resolve(ref)
    subject = found.implementation
    declared = declarations.load(found.declarations, docstrings(subject)) if found.declarations else ()
    profile = Profile("quick" if examples <= 4 else "default", examples, 0)
    return Session(subject, variants_of(file), ORACLES, profile, declared)


def ordered(session: Any, file: str) -> list[Any]:
    """The session's keys in the order of asking."""
    from harness.engine.session import load_checks

    keys = [key for check in load_checks().values() for key in session.keys(check)]
    if file.endswith("target.py"):  # what this file decides is asked of whole models
        keys = [key for key in keys if key.check.startswith(("targets.", "forward.random"))]
    about = ABOUT.get(Path(file).stem, ())
    return sorted(keys, key=lambda key: _rank(key.check, about))


def _rank(check: str, about: tuple[str, ...]) -> tuple[int, int]:
    if check.startswith(about):
        return 0, -1
    if check in FIRST:
        return 0, FIRST.index(check)
    return (2 if check.startswith(LAST) else 1), 0


def judge(file: str, source: str, examples: int, holds: frozenset[str], say: Say) -> None:
    """Say ("at", claim) as it goes, and in the end ("killed", by what) or ("survived", "")."""
    load(file, source)
    try:
        for claim, outcome in outcomes(file, examples):
            say(("at", claim))
            if claim in holds and outcome in KILLS:
                say(("killed", claim))
                return
    except BaseException as error:  # a mutant that does not even import, or that ends the process, is noticed
        say(("killed", f"import: {type(error).__name__}"))
        return
    say(("survived", ""))


def unit_test(file: str, source: str, say: Say) -> None:
    """Say ("killed", the first of the unit tests of the file's package that fails) or ("survived", "")."""
    import pytest

    class First:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                say(("killed", report.nodeid))

    load(file, source)
    tests = str(ROOT / "tests" / Path(file).parts[-2 if file.startswith("oracles") else 1])
    quiet = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    code = pytest.main([tests, *quiet], plugins=[First()])
    say(("killed", "collection") if code else ("survived", ""))


def baseline(file: str, examples: int, say: Say) -> None:
    """Say ("holds", claim) for every claim that the file as it is does not fail."""
    load(file, (ROOT / file).read_text(encoding="utf-8"))
    for claim, outcome in outcomes(file, examples):
        say(("at", claim) if outcome in KILLS else ("holds", claim))
    say(("survived", ""))

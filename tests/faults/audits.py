"""One variant of one subject, audited in a forked process, and what was found of it kept in a file.

What several runs share is imported once; one that was interrupted goes on where it was, since what is kept is not
asked again. What is kept belongs to one state of the audit's code, one subject file and one environment.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from tests.scratch import scratch

ROOT = Path(__file__).parents[2]
CODE = ("harness", "oracles", "reports/judge")
CACHE = platformdirs.user_cache_path("adapter-conformance") / "faults"
FORK = multiprocessing.get_context("fork")
# Packages that libraries use where they find them.
LOOKED_FOR = ("torchao", "bitsandbytes")
# Left out of every run: what takes longest and is about torch, or asks the references of each other.
SLOW = ("contexts.compile", "init.distribution")
# Asked only where a report is about them: whole models and whole checkpoints take longest after those.
ON_REQUEST = ("targets.", "checkpoints.", "merge.model")


@dataclass(frozen=True)
class Run:
    """What to audit: a subject's file and class, what to install beside it (none: here), one variant."""

    ref: str
    requires: tuple[str, ...]
    variant: str
    concerns: tuple[
        str, ...
    ] = ()  # checks, or beginnings of their names, that are asked though they are slow
    only: bool = False  # ask nothing but ``concerns``
    here: bool = (
        True  # in the process that asks, before whose packages the subject's are put; else in a worker
    )
    profile: str = "quick"
    label: str = ""  # what has been done to the subject, where that is not in its file
    overrides: tuple[str, ...] = ()  # versions to install whatever a package asks for
    excludes: tuple[str, ...] = ()  # packages not to install though one asks for them

    def asks(self, check: str) -> bool:
        """Whether this run asks a check."""
        if check.startswith(self.concerns or ("-",)):
            return True
        return not self.only and check not in SLOW and not check.startswith(ON_REQUEST)


@dataclass(frozen=True)
class Found:
    """A finding: ``text`` is all that the review says of it, ``asked``: the claims that it was found by."""

    tag: str
    severity: str
    title: str
    text: str
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What an audit came to; ``error``: why there is none."""

    findings: tuple[Found, ...] = ()
    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


@functools.cache
def code_hash() -> str:
    """The audit's code as it is: a result of another one is not this one's."""
    files = sorted(f for folder in CODE for f in (ROOT / folder).rglob("*.py") if "subjects" not in f.parts)
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in (*files, Path(__file__)))).hexdigest()[:12]


def key_of(run: Run) -> str:
    """What a result is kept under."""
    what = [run.ref, run.requires, run.variant, run.only, run.here, run.profile, run.label, run.concerns]
    if run.overrides or run.excludes:
        what += [run.overrides, run.excludes]
    told = json.dumps(what)
    return f"{run.variant}-" + hashlib.sha256(told.encode()).hexdigest()[:16]


def state_of(run: Run) -> str:
    """What a result depends on besides: the audit's code and the subject's file."""
    file = ROOT / run.ref.rpartition(":")[0]
    return f"{code_hash()}-{_short(file) if file.is_file() else ''}"


def _short(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def kept(run: Run, keep: bool = False, folder: Path = CACHE) -> Result | None:
    """The result of an earlier run, if it is of this audit (``keep``: or of an earlier one) and asked as much."""
    path = folder / f"{key_of(run)}.json"
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    asked_all = set(run.concerns) <= set(told["concerns"])
    if not asked_all or (told["state"] != state_of(run) and not keep):
        return None
    found = tuple(Found(**{**f, "asked": tuple(f["asked"])}) for f in told["findings"])
    return Result(found, told["outcomes"], told["reasons"], told["seconds"], told["error"])


def keep(run: Run, result: Result, folder: Path = CACHE) -> None:
    """Write a result, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "ref": run.ref,
        "requires": run.requires,
        "variant": run.variant,
        "concerns": run.concerns,
        "state": state_of(run),
        "findings": [vars(f) for f in result.findings],
        "outcomes": result.outcomes,
        "reasons": result.reasons,
        "seconds": result.seconds,
        "error": result.error,
    }
    path = folder / f"{key_of(run)}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


Prepare = Callable[[Run], None]


def results(
    runs: Sequence[Run],
    *,
    keep_old: bool,
    seconds: float,
    say: Callable[[str], None],
    folder: Path = CACHE,
    prepare: Prepare = lambda run: None,
) -> dict[Run, Result]:
    """Each run's result, from the cache or asked now, one at a time; an error is a result too, and is not kept.

    ``prepare`` is called in the process that asks, before the subject is imported.
    """
    found = {run: old for run in runs if (old := kept(run, keep_old, folder)) is not None}
    left = [run for run in runs if run not in found]
    say(f"{len(found)} of {len(runs)} audits are kept, {len(left)} are asked")
    for group in _groups(left):
        for run, result in _asked(group, seconds, prepare):
            found[run] = result
            if result.error is None:
                keep(run, result, folder)
            what = run.label or (run.requires[0] if run.requires else run.ref)
            bugs = sum(f.tag == "BUG" for f in result.findings)
            told = result.error or f"{bugs} bugs, {result.seconds:.0f} s"
            say(f"[{len(found)}/{len(runs)}] {run.variant} of {what}: {told}")
    return found


def _groups(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that can share their imports: in this process, and but for the library itself with the same packages."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alike = run.here, _package(run), run.requires[1:], run.overrides, run.excludes
        groups.setdefault(alike, []).append(run)
    return list(groups.values())


def _package(run: Run) -> str:
    """The module that the library is imported as."""
    return re.split("[<=>]", run.requires[0])[0].replace("-", "_") if run.requires else "peft"


def _asked(runs: Sequence[Run], seconds: float, prepare: Prepare) -> Iterator[tuple[Run, Result]]:
    with scratch():
        yield from _answers(runs, seconds, prepare)


def _answers(runs: Sequence[Run], seconds: float, prepare: Prepare) -> Iterator[tuple[Run, Result]]:
    """Results from a process that has imported what the runs share, as they come."""
    ear, mouth = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_serve, args=(mouth, runs, seconds, prepare))
    process.start()
    mouth.close()
    left = list(runs)
    try:
        while left:
            yield left.pop(0), ear.recv()
    except EOFError:
        said = Result(error="the process that asks ended")
        yield from ((run, said) for run in runs[len(runs) - len(left) - 1 :])
    finally:
        process.kill()
        process.join()


def _serve(mouth: Any, runs: Sequence[Run], seconds: float, prepare: Prepare) -> None:
    try:
        _import_what_is_shared(runs[0])
        for run in runs:
            mouth.send(audited(run, seconds, prepare))
    finally:
        mouth.close()
        os._exit(0)


def _import_what_is_shared(run: Run) -> None:
    """Everything but the library itself, which every run imports anew from its own environment."""
    import torch

    from harness.engine.session import load_checks, load_references

    torch.set_num_threads(1)
    load_checks()
    if run.here:
        _put_in_front(run)
    load_references()
    stale = _package(run)
    for name in [n for n in sys.modules if n == stale or n.startswith(f"{stale}.")]:
        if run.here:
            del sys.modules[name]


def audited(run: Run, seconds: float, prepare: Prepare = lambda run: None) -> Result:
    """Ask in a process of its own, which is ended after ``seconds``."""
    ear, mouth = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_child, args=(mouth, run, prepare))
    start = time.monotonic()
    process.start()
    mouth.close()
    told: Any = f"no result within {seconds:g} s"
    if ear.poll(seconds):
        try:
            told = ear.recv()
        except EOFError:
            told = "the process that asked ended without a result"
    process.kill()
    process.join()
    if isinstance(told, str):
        return Result(error=told, seconds=time.monotonic() - start)
    return Result(*told, seconds=time.monotonic() - start)


def _child(mouth: Any, run: Run, prepare: Prepare) -> None:
    try:
        os.chdir(ROOT)
        _put_in_front(run)
        prepare(run)
        mouth.send(_judged(run))
    except BaseException as error:
        mouth.send(f"{type(error).__name__}: {error}")
    finally:
        mouth.close()
        os._exit(0)


def _judged(run: Run) -> tuple[Any, ...]:
    from harness.cases.profiles import PROFILES, Profile
    from harness.engine.run_record import run_of
    from harness.engine.session import Session, load_checks
    from reports.judge.judgement import judge

    subject = _subject(run)
    if run.variant not in subject.variants:
        raise LookupError(f"{subject.name} {subject.version} has no {run.variant}")
    profile = Profile(run.profile, PROFILES[run.profile], 0, caps=run.profile == "quick")
    oracles = ("paper",) if run.here and _package(run) == "peft" else ("peft", "paper")
    session = Session(subject, (run.variant,), oracles, profile, ref=run.ref)
    checks = [check for check in load_checks().values() if run.asks(check.id)]
    keys = [key for check in checks for key in one_oracle(session.keys(check))]
    claims = [session.run(key, lambda claim: None).conclude() for key in keys]
    audit = judge(run_of(session, claims, planned=keys))
    by_id = {claim.id: claim for claim in audit.run.claims}
    found = tuple(_found(finding, by_id) for finding in audit.findings)
    return found, {c.id: c.outcome for c in claims}, {c.id: c.reason for c in claims if c.outcome != "pass"}


def one_oracle(keys: Iterable[Any]) -> list[Any]:
    """Of the claims that differ in their oracle alone, the one against the equation, where there is one."""
    chosen: dict[tuple[Any, ...], Any] = {}
    for key in keys:
        place = key.check, key.variant, key.mode
        if place not in chosen or key.oracle == "paper":
            chosen[place] = key
    return list(chosen.values())


def _put_in_front(run: Run) -> None:
    """The packages of the subject's environment before the audit's own; torch is the audit's, being there already."""
    if run.here and (python := _interpreter(run)) is not None:
        own = next(python.parents[1].glob("lib/python*/site-packages"))
        sys.path.insert(0, str(own))
        # A library looks for these by itself; what it would find is the audit's, of any release.
        sys.modules.update({name: None for name in LOOKED_FOR if not (own / name).is_dir()})  # type: ignore[misc]


def _interpreter(run: Run) -> Path | None:
    from harness.subjects.remote import environment

    if not run.requires:
        return None
    metadata = environment.Metadata(run.requires, overrides=run.overrides, excludes=run.excludes)
    return environment.interpreter(metadata, lambda line: print(line, file=sys.stderr, flush=True))


def _subject(run: Run) -> Any:
    """The subject: here its file is imported whatever its metadata says, since its packages are in front."""
    from harness.subjects import resolve

    if not run.here:
        return resolve.resolve(
            run.ref, resolve.Place(_interpreter(run), say=lambda line: None)
        ).implementation
    resolve.offered_interface.offer()
    file, _, attribute = run.ref.partition(":")
    module = resolve._from_file(str(ROOT / file), run.ref)
    return getattr(module, attribute)()


def _found(finding: Any, by_id: dict[str, Any]) -> Found:
    claims = [by_id[id_] for id_ in finding.claims if id_ in by_id]
    said = [finding.title, finding.failure_mode, str(finding.mistake or "")]
    for claim in claims:
        witness, diagnosis = claim.witness, claim.diagnosis
        said += [claim.id, claim.reason or ""]
        said += [witness.quantity, str(witness.case)] if witness else []
        said += [diagnosis.summary] if diagnosis else []
    text = re.sub(r"\s+", " ", " · ".join(filter(None, said)))
    return Found(finding.tag, finding.severity, finding.title, text, tuple(finding.claims))

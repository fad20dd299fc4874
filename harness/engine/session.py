"""A selection of claims: which checks of which variants against which oracles, built once and asked one by one.

The pytest plugin runs it test by test; `tests/` and tools run it in one call (:func:`claims_for`).
"""

from __future__ import annotations

import gc
import importlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

from harness.cases.profiles import Profile
from harness.compare.layer import BUCKETS, SUBJECTS
from harness.engine import preflight
from harness.engine.checks import CHECKS, Check, load_checks
from harness.engine.claim_run import ClaimRun
from oracles import registry
from oracles.implementation import Implementation
from oracles.oracle import Oracle
from oracles.variants import VARIANTS, Variant
from reports.model import Claim, Declaration, Key

# What authors' code is asked: what it and a recording of it can both answer, in the same sense.
OF_AUTHORS = frozenset({
    "shapes.canonical", "shapes.roles", "init.deterministic", "init.pairs", "init.principal",
    "step0.gradients", "step0.dead_parameters", "step0.input_gradient", "scale.effective", "forward.at_init",
    "forward.random_parameters", "forward.gradients", "forward.input_gradient", "forward.effective_weight",
    "forward.modes",
})  # fmt: skip


@cache
def load_references() -> None:
    """Import what is slow to import, once and in no claim's time; a controller, which asks nothing, never does."""
    for name in ("peft", "transformers", "scipy.stats"):
        importlib.import_module(name)
    gc.freeze()  # a few hundred thousand objects that stay: the collector need not walk them again and again
    gc.set_threshold(20_000, 20, 20)  # nor after every seven hundred new ones


@dataclass
class Session:
    """A subject and what is asked of it."""

    subject: Implementation
    variants: tuple[str, ...]
    oracles: tuple[str, ...]
    profile: Profile
    declarations: tuple[Declaration, ...] = ()
    ref: str = "lora_lite"
    python: str | None = None  # the interpreter that the subject was asked to run in, as it was given

    def __post_init__(self) -> None:
        SUBJECTS[self.subject.name] = self.subject

    _broken: dict[str, preflight.Broken | None] = field(default_factory=dict)
    _made: dict[registry.Entry, Oracle] = field(default_factory=dict)

    def keys(self, check: Check) -> Iterator[Key]:
        """The claims of one check in this session, in a fixed order."""
        for variant in (VARIANTS[v] for v in self.variants):
            if not check.applies(variant):
                continue
            for mode in variant.modes if check.modes else (None,):
                for oracle in self._asked(check, variant, mode):
                    yield Key(check.id, variant.id, mode, oracle)

    def planned(self) -> list[Key]:
        """All the claims of this session, whatever pytest is told to leave out."""
        return [key for check in load_checks().values() for key in self.keys(check)]

    def _asked(self, check: Check, variant: Variant, mode: str | None) -> list[str]:
        there = [e for e in registry.entries() if variant.id in e.variants and e.id in self.oracles]
        return [e.id for e in there if e.offers(mode) and _is_asked_of(check, e)]

    def run(self, key: Key, record: Callable[[Claim], None]) -> ClaimRun:
        """The claim behind a key, ready to be asked."""
        load_references()
        return ClaimRun(
            CHECKS[key.check],
            VARIANTS[key.variant],
            key.oracle,
            key.mode,
            self.subject,
            self._oracle(key.oracle, key.variant),
            self.profile,
            self.declarations,
            self.broken_wrapper,
            record,
            self.ref,
            lambda: self._others(key),
            self.python,
        )

    def _others(self, key: Key) -> dict[str, Oracle]:
        """The further oracles of this selection that the same question is asked of."""
        check, variant = CHECKS[key.check], VARIANTS[key.variant]
        ids = [id_ for id_ in self._asked(check, variant, key.mode) if id_ != key.oracle]
        return {id_: self._oracle(id_, key.variant) for id_ in ids}

    def _oracle(self, id_: str, variant: str) -> Oracle:
        entry = registry.find(id_, variant)
        if entry not in self._made:
            self._made[entry] = entry.make()
            if self._made[entry].name != self.subject.name:
                BUCKETS[self._made[entry].name] = "oracle"
        return self._made[entry]

    def broken_wrapper(self, variant: str) -> preflight.Broken | None:
        """What keeps a variant from being audited, if anything does; asked once."""
        if variant not in self._broken:
            self._broken[variant] = preflight.broken_wrapper(self.subject, VARIANTS[variant])
        return self._broken[variant]


def _is_asked_of(check: Check, entry: registry.Entry) -> bool:
    if entry.is_author:
        return check.id in OF_AUTHORS
    return check.against is None or entry.id in check.against


def claims_for(
    subject: Implementation,
    *,
    variants: Sequence[str] | None = None,
    oracles: Sequence[str] = ("peft", "paper"),
    checks: Callable[[Check], bool] = lambda check: True,
    profile: Profile | None = None,
    declarations: tuple[Declaration, ...] = (),
) -> list[Claim]:
    """Ask everything of ``subject`` that the selection leaves, without pytest; the claims in a fixed order."""
    chosen = tuple(v for v in VARIANTS if v in (variants or subject.variants))
    session = Session(subject, chosen, tuple(oracles), profile or Profile("quick", 4, 0), declarations)
    asked = [c for c in load_checks().values() if checks(c)]
    return [session.run(key, lambda claim: None).conclude() for c in asked for key in session.keys(c)]


def environment() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "python": platform.python_version(),
        **{name: version(name).split("+")[0] for name in ("torch", "peft", "transformers")},
    }

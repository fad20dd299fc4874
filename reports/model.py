"""The data of an audit: frozen records, plain values, in the vocabulary of `audit.json` (schema 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from refs.vocabulary import Cause, Grade, Outcome, Severity, Source, Tag

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Witness:
    """The smallest case at which a claim fails, in plain values.

    ``case`` describes the case in words and numbers (in, out, rank, alpha, dtype, bias, batch, state, seed);
    ``quantity`` is what was compared ("output", "gradient of A"); ``expected`` and ``actual``: short texts.
    ``agree``, ``differ``, ``not_asked``: the oracles by what they say of this very case; ``heard``: what the subject
    said aloud, its warnings and log records.
    """

    case: Mapping[str, Any]
    quantity: str
    expected: str
    actual: str
    note: str = ""
    replay: str = ""
    agree: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    not_asked: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """A known mistake (or a reference's other form) whose values equal the subject's.

    ``source``: who says so, the catalogue of mistakes or the check that failed; in how many of the cases that were
    ``tried`` the values ``matched``: a check knows by its own case. ``remedy``: what to do about it, as
    an instruction; empty where nothing better is known than to follow the references.
    ``agrees_with`` names the reference that has this form (then it is no bug); None for a plain mistake.
    ``documented_by`` are words of which any one, in the subject's docstring, states the choice. ``place`` is the aspect
    whose lines decide it ("scale"), where that is not the aspect of the claim that failed.
    """

    mistake: str
    summary: str
    failure_mode: str
    matched: int = 1
    tried: int = 1
    agrees_with: str | None = None
    documented_by: tuple[str, ...] = ()
    severity: Severity | None = None
    source: Source = "check"
    remedy: str = ""
    place: str = ""


@dataclass(frozen=True)
class Key:
    """One claim before it is asked: a check of a variant, in one of its modes or in none, against an oracle."""

    check: str
    variant: str
    mode: str | None
    oracle: str

    @property
    def label(self) -> str:
        """The part of the claim's id in brackets."""
        return f"{self.variant}-{self.mode}-{self.oracle}" if self.mode else f"{self.variant}-{self.oracle}"

    @property
    def id(self) -> str:
        """The claim's id, ``check[variant-oracle]`` or ``check[variant-mode-oracle]``."""
        return f"{self.check}[{self.label}]"


# Details of a claim that fails: by the dtype of something, not by its values; for no reason that other checks tell.
OF_DTYPES, ALONE = "dtype", "alone"


@dataclass(frozen=True)
class Claim:
    """One check of one variant against one oracle, and its outcome. ``ratio``: worst seen, see DESIGN §9.

    ``reason``: why, as a sentence for the reader. ``cause``: the same for a program, with ``detail``: the
    disagreement's id, the option or method that is missing, the kind of crash, that it is a dtype that differs, or
    that what fails elsewhere is not why; None where there is nothing to tell.
    ``mode``: the variant's mode that was asked about, if it was about one. ``further``: other mistakes that the claim
    shows, too, where several at once make it fail.
    """

    id: str
    variant: str
    aspect: str
    check: str
    oracle: str
    outcome: Outcome
    ratio: float | None = None
    threshold: float | None = None
    examples: int = 0
    witness: Witness | None = None
    diagnosis: Diagnosis | None = None
    reason: str | None = None
    cause: Cause | None = None
    detail: str | None = None
    mode: str | None = None
    further: tuple[Diagnosis, ...] = ()

    @property
    def question(self) -> tuple[str, str, str | None]:
        """What was asked of all the references alike: the claim without its oracle."""
        return self.check, self.variant, self.mode


@dataclass(frozen=True)
class CheckInfo:
    """What the reports need to know of a check: how bad its failure is and how to say it.

    ``question``: what the check asks (its docstring's first paragraph). ``title``: the difference, as a
    sentence for a finding that nothing in the mistakes catalogue explains. ``failure_mode``: what goes wrong
    for a user. ``follows``: checks whose failure explains this one's (a wrong forward also trains wrongly),
    so that one defect is one finding.
    """

    id: str
    aspect: str
    severity: Severity
    question: str
    title: str
    failure_mode: str
    follows: tuple[str, ...] = ()


@dataclass(frozen=True)
class OracleInfo:
    """Where an oracle comes from. ``kind`` recorded: replayed from files committed here, not run live."""

    id: str
    variant: str | None
    kind: Literal["live", "recorded", "equation"]
    title: str
    package: str | None = None
    version: str | None = None
    repo: str | None = None
    commit: str | None = None
    sha256: str | None = None
    licence: str | None = None
    recorded_on: str | None = None


@dataclass(frozen=True)
class Declaration:
    """A deviation that the subject declares. ``check``: an id, or "aspect.*"; ``oracle``: an id, or "*".

    ``documented``: the subject's docstring contains all the words; ``occurred``: some claim of this run failed as
    declared (None: not asked in this selection).
    """

    check: str
    variant: str
    oracle: str
    reason: str
    words: tuple[str, ...]
    documented: bool
    occurred: bool | None

    def covers(self, claim: Claim) -> bool:
        """Whether it speaks of this claim."""
        return (
            self.check in (claim.check, f"{claim.aspect}.*")
            and self.variant == claim.variant
            and self.oracle in ("*", claim.oracle)
        )


@dataclass(frozen=True)
class VariantInfo:
    """A variant's record, as far as the review shows it."""

    id: str
    title: str
    paper: str
    equation: str
    reference_facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # aspect -> source -> fact


@dataclass(frozen=True)
class DocstringPart:
    """One docstring of the subject: the file as it is shown, the line on which the text begins (0: not known)."""

    alias: str
    line: int
    text: str


@dataclass(frozen=True)
class Subject:
    """What was audited. ``sources``: (variant, aspect) -> file and qualified symbol, for quotes;
    ``docstrings``: variant -> the text in which the subject states its choices; ``environment``: versions where it
    runs in another environment than the audit. ``docstring_parts``: the same text with its places, by the reports."""

    name: str
    version: str
    ref: str
    sources: Mapping[tuple[str, str], tuple[Path, str]] = field(default_factory=dict)
    docstrings: Mapping[str, str] = field(default_factory=dict)
    quotes: Mapping[tuple[str, str], Cite] = field(
        default_factory=dict
    )  # filled from ``sources`` by the reports
    environment: Mapping[str, str] | None = None
    docstring_parts: Mapping[str, tuple[DocstringPart, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Everything a run hands to the reports, before judgement.

    ``variants``: in the order of the review. ``planned``: all the claims of the selection, over all shards; those
    without a claim are missing. ``shard``: "1/3" where this run asked only its part of them.
    """

    subject: Subject
    oracles: tuple[OracleInfo, ...]
    environment: Mapping[str, str]
    profile: Mapping[str, Any]  # name, examples, seed
    variants: tuple[VariantInfo, ...]
    checks: Mapping[str, CheckInfo]
    claims: tuple[Claim, ...]  # in collection order
    declarations: tuple[Declaration, ...] = ()
    reference_disagreements: tuple[Mapping[str, Any], ...] = ()
    root: Path = Path()  # paths in cites are shown relative to it where possible
    planned: tuple[Key, ...] = ()
    shard: str | None = None


@dataclass(frozen=True)
class Cite:
    """A place in a source file: ``alias:Lstart`` with at most 10 quoted lines, or why there is none."""

    alias: str
    start: int | None
    end: int | None
    lines: tuple[str, ...] = ()
    url: str | None = None
    missing: str | None = None
    symbol: str | None = None
    note: str | None = None  # "differs from the pinned release"

    @property
    def label(self) -> str:
        """``alias:L150``; the alias alone where there are no lines."""
        return self.alias if self.start is None else f"{self.alias}:L{self.start}"


@dataclass(frozen=True)
class Finding:
    """One difference between the subject and the references.

    ``agree``, ``differ``, ``not_asked``: ids of the run's oracles, by what they say of the smallest case or, where that
    is not known, of the question of its first claim; what could not be told is not asked. ``mistake``: what it is due
    to, where that is known; ``heard``: warnings of the subject; ``stated``: the docstring's sentence that states it,
    with its place; ``also_fails``: references that fail the check for the same reason when they are audited.
    """

    id: str  # "D1", "D2", ... within its variant
    variant: str
    aspect: str
    tag: Tag
    new: bool
    overturn: bool
    severity: Severity
    title: str
    failure_mode: str
    claims: tuple[str, ...]
    reference_cites: tuple[Cite, ...] = ()
    subject_cites: tuple[Cite, ...] = ()
    agree: tuple[str, ...] = ()
    differ: tuple[str, ...] = ()
    not_asked: tuple[str, ...] = ()
    mistake: str | None = None
    heard: tuple[str, ...] = ()
    stated: str = ""
    also_fails: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The judgement on a variant; ``verified`` of ``applicable`` claims hold (declared ones included)."""

    prior: str | None
    verdict: Grade
    reason: str
    new_bugs: int
    doc_gaps: int
    verified: int
    applicable: int


@dataclass(frozen=True)
class PriorFinding:
    """One line of an earlier review: the checks that ask the same, the mistakes meant (globs allowed).

    ``claims``: ids of the claims that failed then, each with the number of its cases; empty where a review was
    written by hand, and then nothing shows that its own cases were asked again.
    """

    id: str
    quote: str
    tag: Tag = "BUG"
    checks: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()
    claims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PriorVariant:
    """What an earlier review said of one variant."""

    variant: str
    verdict: Grade
    findings: tuple[PriorFinding, ...] = ()


@dataclass(frozen=True)
class Prior:
    """An earlier review; ``title`` says which. ``subjects``: the names it was about; none: whoever it is given for."""

    title: str
    variants: Mapping[str, PriorVariant] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()

    def is_about(self, subject: str) -> bool:
        """Whether the review was of that subject."""
        return not self.subjects or subject in self.subjects


@dataclass(frozen=True)
class Audit:
    """A judged run: what `audit.json` holds."""

    run: Run
    findings: tuple[Finding, ...]
    verdicts: Mapping[str, Verdict]
    prior: Prior | None = None

"""The survey arranged for reading: a row for each library, a cell for each of its methods, its findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.survey.answers import Answer
from harness.survey.asking import anonymous
from harness.survey.hand_checked import Checked, Standing, standing
from reports.model import Audit, Cite, Verdict
from reports.render.claim_rows import skipped
from reports.render.differences import Difference
from reports.render.review import Section, review
from reports.text import listed


@dataclass(frozen=True)
class Told:
    """One finding of a library: ``anchor`` where it stands, ``sentences`` by what they are about, ``places`` as
    ``file:line`` in the library's own release and in the references."""

    id: str
    tag: str
    severity: str
    aspect: str
    title: str
    anchor: str
    sentences: tuple[tuple[str, str], ...]
    replay: str
    claims: tuple[str, ...]
    own_places: tuple[str, ...]
    reference_places: tuple[str, ...]
    standing: Standing


@dataclass(frozen=True)
class Method:
    """One cell. ``lacking``: claims on what the library does not offer; ``target``: the anchor that it leads to."""

    id: str
    title: str
    anchor: str
    verdict: Verdict
    counts: str
    bugs: int
    lacking: int
    findings: tuple[Told, ...]

    @property
    def target(self) -> str:
        return self.findings[0].anchor if self.findings else self.anchor

    @property
    def summary(self) -> str:
        """`2 bugs, 1 gap, 31 not offered`, without what is none."""
        gaps = self.verdict.doc_gaps
        parts = [(self.bugs, "bug"), (gaps, "gap")]
        told = [f"{n} {word}{'s' * (n != 1)}" for n, word in parts if n]
        return ", ".join([*told, *([f"{self.lacking} not offered"] if self.lacking else [])])


@dataclass(frozen=True)
class Row:
    """One library. ``methods``: none where its answer is a failure; ``outdated``: asked by another state of the
    audit; ``mended``: what the audit had said wrongly, and does not say any more; ``beside``: what no
    claim asks, and was seen while reading."""

    answer: Answer
    requirements: str
    outdated: bool
    name: str
    version: str = ""
    environment: str = ""
    methods: Mapping[str, Method] = field(default_factory=dict)
    mended: tuple[Checked, ...] = ()
    beside: tuple[Checked, ...] = ()

    @property
    def library(self) -> str:
        return self.answer.library

    @property
    def anchor(self) -> str:
        return anchor(self.library)

    @property
    def took(self) -> str:
        return duration(self.answer.seconds)

    @property
    def drafts(self) -> list[Checked]:
        """The entries with a draft for the maintainers, in the order of the findings; last those seen beside them."""
        told = [f.standing.entry for m in self.methods.values() for f in m.findings]
        return list(dict.fromkeys(e for e in (*told, *self.beside) if e and e.issue_draft))


def row(answer: Answer, audit: Audit, entries: Sequence[Checked], requirements: str, outdated: bool) -> Row:
    """A library that has answered."""
    run = audit.run
    methods = [_method(answer.library, section, audit, entries) for section in review(audit).sections]
    told = {f.standing.entry for m in methods for f in m.findings if f.tag == "BUG"}
    beside = tuple(e for e in entries if e.beside and e.version == run.subject.version)
    mended = tuple(e for e in entries if e.verdict == "false" and e not in told)
    environment = f"asked with {_versions(run.environment)}"
    if run.subject.environment:
        environment = f"run with {_versions(run.subject.environment)}; {environment}"
    by_id = {m.id: m for m in methods}
    return Row(
        *(answer, requirements, outdated, run.subject.name, run.subject.version, environment),
        methods=by_id,
        mended=mended,
        beside=beside,
    )


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `1 h 35 min`."""
    minutes = round(seconds / 60)
    if not seconds:
        return "a time not known"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def anchor(*names: str) -> str:
    """Names as the target of a link: small ASCII letters, digits and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)


def _versions(environment: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in environment.items())


def _method(library: str, section: Section, audit: Audit, entries: Sequence[Checked]) -> Method:
    own = [c for c in audit.run.claims if c.variant == section.id]
    found = tuple(_told(library, d, audit, entries) for d in section.differences)
    return Method(
        id=section.id,
        title=section.title,
        anchor=anchor(library, section.id),
        verdict=section.verdict,
        counts=section.counts,
        bugs=sum(f.tag == "BUG" for f in found),
        lacking=skipped(own)[0],
        findings=found,
    )


def _told(library: str, difference: Difference, audit: Audit, entries: Sequence[Checked]) -> Told:
    finding = difference.finding
    return Told(
        id=finding.id,
        tag=finding.tag,
        severity=finding.severity,
        aspect=difference.aspect,
        title=anonymous(finding.title),
        anchor=anchor(library, finding.variant, finding.id),
        sentences=tuple((name, anonymous(words)) for name, words in _sentences(difference) if words),
        replay=anonymous(difference.replay),
        claims=finding.claims,
        own_places=_places(finding.subject_cites),
        reference_places=_places(finding.reference_cites),
        standing=standing(audit, finding, entries),
    )


def _sentences(difference: Difference) -> list[tuple[str, str]]:
    """What is said of a finding. Where its docstring states it, only that it does: a page quotes nobody's text."""
    finding = difference.finding
    return [
        ("Failure mode", finding.failure_mode),
        ("Equals", difference.equals),
        ("Smallest case", difference.smallest),
        ("It says", difference.said),
        ("Against", difference.against),
        ("To mend", difference.mend),
        ("Also seen in", difference.also),
        ("Documented", "its docstring states it" if finding.stated else difference.note),
    ]


def _places(cites: Sequence[Cite]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{c.alias}:{c.start}" for c in cites if c.start is not None))


def said(rows: Sequence[Row]) -> str:
    """How much there is, in a sentence."""
    answered = [r for r in rows if r.methods]
    methods = [m for r in answered for m in r.methods.values()]
    bugs = [f for m in methods for f in m.findings if f.tag == "BUG"]
    checked = [f.standing.entry for f in bugs if f.standing.entry]
    false = sum(entry.verdict == "false" for entry in checked)
    dates = listed(sorted({r.answer.day for r in answered}))
    words = f"{_counted(answered, 'library', 'libraries')} with {_counted(methods, 'method', 'methods')}"
    words += f", asked on {dates}" if dates else ""
    words += f"; {_counted(bugs, 'finding is', 'findings are')} called a bug, {len(checked)} of them checked by hand"
    return f"{words}, {false} of these false"


def _counted(items: Sequence[object], one: str, several: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else several}"

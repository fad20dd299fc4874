"""An audit arranged for reading: the sections that every renderer (markdown, HTML) lays out.

Texts here are raw; a renderer escapes each for its own format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from refs.vocabulary import ASPECTS, GRADES, QUOTED, TAGS
from reports import cites
from reports.judge.confirm import PriorLine, prior_lines
from reports.judge.verdicts import missing_claims
from reports.model import Audit, Claim, Run, Verdict
from reports.render.claim_rows import CheckRow, Gap, check_rows, gaps, skipped
from reports.render.differences import Difference, difference
from reports.render.fixes import Fix, next_fixes
from reports.render.oracle_names import oracle_name, with_version
from reports.render.references import Disputed, FactRow, Quoted, disagreements, fact_rows, subject_quotes
from reports.render.strip import Strip, strip
from reports.text import listed

FIRST = 3  # of the fixes, in the glance
LEGEND = (
    "*Ratio*: how far a number of the subject is from the reference's, in units of the rounding error that its dtype"
    " and the length of its sums explain. *Threshold*: up to there a claim holds.",
    "*Smallest case*: the input at which it fails, shrunk: sizes of the layer, rank, alpha, dtype, rows of x. *Replay*"
    " asks that claim again.",
    "*Tags*: BUG agrees with no reference and is not stated; OK-undoc differs acceptably and is not stated, OK-doc is"
    " stated; STYLE is a matter of form. *Severity*: critical makes Buggy, major Partial, minor a doc gap.",
    "*k of n claims verified*: a claim is one question against one reference. Not offered: the subject lacks the"
    " method; not applicable: the question does not arise.",
    "*References*: live ones are run now, recorded ones replay outputs of the authors' code, equations are the paper's"
    " in float64.",
    "*What a verdict does not say*: an audit runs on the processor, in one process, on small layers and for ten steps"
    " of training; what that leaves unseen, and what of it was measured, stands in the audit's `docs/blind_spots.md`.",
)


@dataclass(frozen=True)
class Section:
    """Everything the review says of one variant."""

    id: str
    title: str
    paper: str
    equation: str
    verdict: Verdict
    counts: str
    references: str
    facts: tuple[FactRow, ...]
    reference_quotes: tuple[Quoted, ...]
    disagreements: tuple[Disputed, ...]
    subject_quotes: tuple[Quoted, ...]
    differences: tuple[Difference, ...]
    holding: str
    oracles: tuple[str, ...]
    checks: tuple[CheckRow, ...]
    strip: Strip | None
    gaps: tuple[Gap, ...]
    prior: tuple[PriorLine, ...]


@dataclass(frozen=True)
class Review:
    """The whole review."""

    subject: str
    ref: str
    setting: str
    summary: str
    legend: tuple[str, ...]
    incomplete: str
    prior: str | None
    sections: tuple[Section, ...]
    tags: tuple[str, ...]
    fixes: tuple[Fix, ...]
    first: tuple[Fix, ...]
    stale: tuple[str, ...]


def review(audit: Audit) -> Review:
    """The audit, arranged."""
    run = audit.run
    names = {v: _title(run, v) for v in audit.verdicts}
    found = next_fixes(audit, names)
    return Review(
        subject=f"{run.subject.name} {run.subject.version}",
        ref=run.subject.ref,
        setting=_setting(run),
        summary=_summary(audit, names),
        legend=LEGEND,
        incomplete=_incomplete(run),
        prior=audit.prior.title if audit.prior else None,
        sections=tuple(_section(audit, v) for v in audit.verdicts),
        tags=tuple(t for t in TAGS if any(f.tag == t for f in audit.findings)),
        fixes=found,
        first=found[:FIRST],
        stale=tuple(_stale(run, names)),
    )


def _setting(run: Run) -> str:
    profile = run.profile
    versions = ", ".join(f"{name} {value}" for name, value in run.environment.items())
    return f"profile {profile['name']} ({profile['examples']} examples, seed {profile['seed']}); {versions}"


def _summary(audit: Audit, names: Mapping[str, str]) -> str:
    """The verdicts in one line: "Buggy: HRA and DeLoRA; Faithful: LoRA"."""
    by_grade: dict[str, list[str]] = {}
    for variant, verdict in audit.verdicts.items():
        by_grade.setdefault(verdict.verdict, []).append(names[variant])
    return "; ".join(f"{grade}: {listed(by_grade[grade])}" for grade in reversed(GRADES) if grade in by_grade)


def _incomplete(run: Run) -> str:
    missing = len(missing_claims(run))
    if run.shard is not None:
        return f"This is shard {run.shard} of a run: {missing} claims were asked elsewhere."
    if missing:
        return (
            f"This run is not whole: {missing} of {len(run.planned)} claims were not asked, or not concluded."
        )
    return ""


def _stale(run: Run, names: Mapping[str, str]) -> Iterable[str]:
    for d in run.declarations:
        if d.occurred is False:
            who = names.get(d.variant, d.variant)
            yield f"{who}: `{d.check}` against {d.oracle} is declared ({d.reason}), and holds"


def _title(run: Run, variant: str) -> str:
    return next((v.title for v in run.variants if v.id == variant), variant)


def _section(audit: Audit, variant: str) -> Section:
    run, verdict = audit.run, audit.verdicts[variant]
    record = next((v for v in run.variants if v.id == variant), None)
    claims = [c for c in run.claims if c.variant == variant]
    found = [f for f in audit.findings if f.variant == variant]
    oracles = _oracles(run, claims)
    missing = [k.id for k in missing_claims(run) if k.variant == variant]
    return Section(
        id=variant,
        title=record.title if record else variant,
        paper=record.paper if record else "",
        equation=record.equation if record else "",
        verdict=verdict,
        counts=_counts(verdict, claims, missing),
        references=_references(run, variant, oracles),
        facts=tuple(fact_rows(run, variant)),
        reference_quotes=tuple(Quoted(ASPECTS[a], cites.reference_cites(variant, a)) for a in QUOTED),
        disagreements=tuple(disagreements(run, variant)),
        subject_quotes=tuple(subject_quotes(run, variant)),
        differences=tuple(difference(run, f, claims) for f in found),
        holding=_holding(claims),
        oracles=tuple(oracle_name(o) for o in oracles),
        checks=tuple(check_rows(run, claims, oracles)),
        strip=strip(claims),
        gaps=tuple(gaps(claims, missing)),
        prior=tuple(prior_lines(audit, variant)),
    )


def _holding(claims: Sequence[Claim]) -> str:
    """The claims that hold, counted by aspect in one line."""
    counts = {a: sum(c.outcome == "pass" and c.aspect == a for c in claims) for a in ASPECTS}
    told = [f"{name} {counts[a]}" for a, name in ASPECTS.items() if counts[a]]
    return f"{sum(counts.values())} claims hold: {', '.join(told)}" if told else "no claim holds"


def _counts(verdict: Verdict, claims: Sequence[Claim], missing: Sequence[str]) -> str:
    """What became of the claims; what the subject does not offer apart from what does not arise."""
    lacking, outside = skipped(claims)
    words = f"{verdict.verified} of {verdict.applicable} claims verified"
    words += f", {lacking} not offered" if lacking else ""
    words += f", {outside} not applicable" if outside else ""
    return words + (f", {len(missing)} missing" if missing else "")


def _oracles(run: Run, claims: Sequence[Claim]) -> list[str]:
    """The ids of the oracles asked, in the run's order."""
    order = [o.id for o in run.oracles]
    return sorted({c.oracle for c in claims}, key=lambda o: (order.index(o) if o in order else len(order), o))


def _references(run: Run, variant: str, oracles: Sequence[str]) -> str:
    """The oracles of a variant, each with its version and whether it ran live."""
    asked = [o for o in run.oracles if o.id in oracles and o.variant in (None, variant)]
    return ", ".join(map(with_version, asked))

"""An audit arranged for reading: the sections and sentences that every renderer (markdown, HTML) lays out.

Texts here are raw; a renderer escapes each for its own format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reports import cites, facts, fixes
from reports.confirm import PriorLine, prior_lines
from reports.grouping import covering, question
from reports.model import Audit, Cite, Claim, Finding, OracleInfo, Run, Verdict
from reports.order import ASPECT_TITLES, ASPECTS, rank
from reports.text import listed, number, shortened
from reports.verdicts import is_unverified, missing_claims

ORACLE_NAMES = {"peft": "PEFT", "paper": "equation", "author": "author"}


@dataclass(frozen=True)
class FactRow:
    """One aspect of what the references do; each cell a fact and where it stands."""

    aspect: str
    cells: tuple[tuple[str, tuple[Cite, ...]], ...]


@dataclass(frozen=True)
class Quoted:
    """An aspect and its quotes."""

    aspect: str
    cites: tuple[Cite, ...]


@dataclass(frozen=True)
class Difference:
    """A finding in sentences; an empty one is left out."""

    finding: Finding
    tags: str
    aspect: str
    equals: str
    smallest: str
    replay: str
    against: str
    also: str
    note: str


@dataclass(frozen=True)
class CheckRow:
    """One question and its answers, an answer per oracle."""

    check: str
    asks: str
    threshold: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Claims that were not verified for one reason."""

    outcome: str
    reason: str
    claims: tuple[str, ...]


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
    disagreements: tuple[str, ...]
    subject_quotes: tuple[Quoted, ...]
    differences: tuple[Difference, ...]
    oracles: tuple[str, ...]
    checks: tuple[CheckRow, ...]
    gaps: tuple[Gap, ...]
    prior: tuple[PriorLine, ...]


@dataclass(frozen=True)
class Review:
    """The whole review."""

    subject: str
    ref: str
    setting: str
    summary: str
    incomplete: str
    prior: str | None
    sections: tuple[Section, ...]
    fixes: tuple[fixes.Fix, ...]
    stale: tuple[str, ...]


def review(audit: Audit) -> Review:
    """The audit, arranged."""
    run = audit.run
    names = {v: _title(run, v) for v in audit.verdicts}
    return Review(
        subject=f"{run.subject.name} {run.subject.version}",
        ref=run.subject.ref,
        setting=_setting(run),
        summary=_summary(audit, names),
        incomplete=_incomplete(run),
        prior=audit.prior.title if audit.prior else None,
        sections=tuple(_section(audit, v) for v in audit.verdicts),
        fixes=fixes.next_fixes(audit, names),
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
    order = ("Buggy", "Partial", "Faithful-with-doc-gap", "Faithful")
    return "; ".join(f"{grade}: {listed(by_grade[grade])}" for grade in order if grade in by_grade)


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
    missing = [i for i in missing_claims(run) if cites.planned_variant(i) == variant]
    return Section(
        id=variant,
        title=record.title if record else variant,
        paper=record.paper if record else "",
        equation=record.equation if record else "",
        verdict=verdict,
        counts=_counts(verdict, claims, missing),
        references=_references(run, variant, oracles),
        facts=tuple(_facts(run, variant)),
        reference_quotes=tuple(
            Quoted(ASPECT_TITLES[a], cites.reference_cites(variant, a)) for a in facts.ASPECTS
        ),
        disagreements=tuple(_disagreements(run, variant)),
        subject_quotes=tuple(_subject_quotes(run, variant)),
        differences=tuple(_difference(run, f, claims) for f in found),
        oracles=tuple(_oracle_name(o) for o in oracles),
        checks=tuple(_check_rows(run, claims, oracles)),
        gaps=tuple(_gaps(claims, missing)),
        prior=tuple(prior_lines(audit, variant)),
    )


def _counts(verdict: Verdict, claims: Sequence[Claim], missing: Sequence[str]) -> str:
    skipped = len(claims) + len(missing) - verdict.applicable
    words = f"{verdict.verified} of {verdict.applicable} claims verified"
    words += f", {skipped} not applicable" if skipped else ""
    return words + (f", {len(missing)} missing" if missing else "")


def _oracles(run: Run, claims: Sequence[Claim]) -> list[str]:
    """The ids of the oracles asked, in the run's order."""
    order = [o.id for o in run.oracles]
    return sorted({c.oracle for c in claims}, key=lambda o: (order.index(o) if o in order else len(order), o))


def _oracle_name(oracle: str) -> str:
    return ORACLE_NAMES.get(oracle, oracle)


def _references(run: Run, variant: str, oracles: Sequence[str]) -> str:
    """The oracles of a variant, each with its version and whether it ran live."""
    asked = [o for o in run.oracles if o.id in oracles and o.variant in (None, variant)]
    return ", ".join(map(_oracle, asked))


def _oracle(info: OracleInfo) -> str:
    """``PEFT 0.21.2 (live)``; a recording with its date."""
    version = info.version or (info.commit or "")[:7]
    when = f" {info.recorded_on}" if info.kind == "recorded" and info.recorded_on else ""
    if info.kind == "equation":
        return info.title if "float64" in info.title else f"{info.title} (float64)"
    name = info.title if not version or version in info.title else f"{info.title} {version}"
    return f"{name} ({info.kind}{when})"


def _facts(run: Run, variant: str) -> Iterable[FactRow]:
    told = next((v.reference_facts for v in run.variants if v.id == variant), {})
    for aspect in facts.ASPECTS:
        row = told.get(aspect) or facts.facts().get(variant, {}).get(aspect, {})
        found = cites.reference_cites(variant, aspect)
        yield FactRow(
            ASPECT_TITLES[aspect],
            tuple((row.get(s, ""), tuple(_by_source(found, s))) for s in facts.SOURCES),
        )


def _by_source(found: Sequence[Cite], source: str) -> Iterable[Cite]:
    """The cites of one source, each place once."""
    seen = set()
    for cite in found:
        if cites.source_of(cite.alias) == source and cite.label not in seen:
            seen.add(cite.label)
            yield cite


def _subject_quotes(run: Run, variant: str) -> Iterable[Quoted]:
    """The subject's places; aspects that share one are named together."""
    by_cite: dict[Cite, list[str]] = {}
    for aspect in cites.quoted_aspects(run.subject, variant):
        by_cite.setdefault(run.subject.quotes[variant, aspect], []).append(ASPECT_TITLES.get(aspect, aspect))
    for cite, aspects in by_cite.items():
        yield Quoted(listed(aspects), (cite,))


def _disagreements(run: Run, variant: str) -> Iterable[str]:
    """Where the references themselves disagree, in the words of the catalogue of disagreements."""
    for entry in run.reference_disagreements:
        if entry.get("variant") in (variant, None):
            said = [
                str(entry[k])
                for k in ("title", "what", "summary", "where", "size", "how_much")
                if entry.get(k)
            ]
            known = f" (`{entry['id']}`)" if entry.get("id") else ""
            yield ": ".join(dict.fromkeys(said)) + known


def _difference(run: Run, finding: Finding, claims: Sequence[Claim]) -> Difference:
    own = sorted((c for c in claims if c.id in finding.claims), key=lambda c: finding.claims.index(c.id))
    lead = own[0]
    silent = is_unverified(finding, claims)
    return Difference(
        finding=finding,
        tags=_tags(finding),
        aspect=ASPECT_TITLES.get(finding.aspect, finding.aspect),
        equals=_equals(finding, own),
        smallest=_smallest(own),
        replay=next((c.witness.replay for c in own if c.witness and c.witness.replay), ""),
        against="" if silent else _against(lead, claims),
        also=_also(lead, own),
        note=_note(run, finding, own),
    )


def _tags(finding: Finding) -> str:
    extra = [tag for tag, holds in (("NEW-BUG", finding.new), ("OVERTURN", finding.overturn)) if holds]
    return " ".join(f"[{tag}]" for tag in (finding.tag, *extra))


def _equals(finding: Finding, own: Sequence[Claim]) -> str:
    """What the mistakes catalogue says of it."""
    diagnosis = next((c.diagnosis for c in own if c.diagnosis), None)
    if diagnosis:
        form = f"; as in {diagnosis.agrees_with}" if diagnosis.agrees_with else ""
        cases = f"in {diagnosis.matched} of {diagnosis.tried} cases"
        return f"`{diagnosis.mistake}` of the mistakes catalogue, {cases}{form}"
    if finding.tag == "BUG" and any(c.outcome == "fail" for c in own):
        return "nothing in the mistakes catalogue"
    return ""


def _smallest(own: Sequence[Claim]) -> str:
    """The counterexample in one sentence: the case, what was expected, what came, by how much it is off."""
    claim = next((c for c in own if c.witness), None)
    if claim is None or claim.witness is None:
        return ""
    w = claim.witness
    case = ", ".join(f"{k} {_shown(v)}" for k, v in w.case.items())
    words = f"{case}: " if case else ""
    words += f"{w.quantity}: expected {_long(w.expected)}, got {_long(w.actual)}"
    if claim.ratio is not None:
        words += f"; ratio {number(claim.ratio)}, threshold {number(claim.threshold)}"
    return words + (f" ({_long(w.note)})" if w.note else "")


def _long(words: str) -> str:
    return shortened(words, 300)


def _shown(value: object) -> str:
    return shortened(f"{value:g}" if isinstance(value, float) else str(value), 120)


def _against(lead: Claim, claims: Sequence[Claim]) -> str:
    """Which references were asked the same question, and with which of them the subject agrees."""
    same = [c for c in claims if question(c) == question(lead)]
    by_outcome: dict[str, list[str]] = {}
    for c in same:
        by_outcome.setdefault(c.outcome, []).append(_oracle_name(c.oracle))
    if lead.outcome == "not_applicable":
        return listed(by_outcome["not_applicable"])
    differs = by_outcome.get("fail", []) + by_outcome.get("error", []) + by_outcome.get("declared", [])
    words = listed(differs)
    words += f" (agrees with {listed(by_outcome['pass'])})" if "pass" in by_outcome else " (agrees with none)"
    return words + (f"; not told by {listed(by_outcome['unverified'])}" if "unverified" in by_outcome else "")


def _also(lead: Claim, own: Sequence[Claim]) -> str:
    """The other checks in which the same defect shows, by aspect."""
    by_aspect: dict[str, dict[str, None]] = {}
    for c in own:
        if c.check != lead.check:
            by_aspect.setdefault(c.aspect, {})[f"`{c.check}`"] = None
    order = sorted(by_aspect, key=lambda a: rank(a, ASPECTS))
    return "; ".join(f"{ASPECT_TITLES.get(a, a)} ({', '.join(by_aspect[a])})" for a in order)


def _note(run: Run, finding: Finding, own: Sequence[Claim]) -> str:
    """Whether the subject says so itself."""
    declared = next((d for c in own if (d := covering(run.declarations, c))), None)
    if declared:
        words = ", ".join(f'"{w}"' for w in declared.words)
        said = (
            f"its docstring says so ({words})"
            if declared.documented
            else f"its docstring does not say {words}"
        )
        return f"declared by the subject, and {said}"
    if finding.tag == "OK-doc":
        return "the subject's docstring says so"
    return "the subject's docstring does not say so" if finding.tag == "OK-undoc" and _compared(own) else ""


def _compared(own: Sequence[Claim]) -> bool:
    return any(c.outcome in ("fail", "declared") for c in own)


def _check_rows(run: Run, claims: Sequence[Claim], oracles: Sequence[str]) -> Iterable[CheckRow]:
    """One row per question, in the order of the claims."""
    rows: dict[str, list[Claim]] = {}
    for claim in claims:
        rows.setdefault(question(claim), []).append(claim)
    for members in rows.values():
        first = members[0]
        info = run.checks.get(first.check)
        limit = next((c.threshold for c in members if c.threshold is not None), None)
        cells = [next((_cell(c) for c in members if c.oracle == o), "") for o in oracles]
        yield CheckRow(_row_name(first), info.question if info else "", number(limit), tuple(cells))


def _row_name(claim: Claim) -> str:
    """The check, and the mode in which it was asked."""
    mode = question(claim).removeprefix(f"{claim.check}[{claim.variant}").strip("-")
    return f"{claim.check} ({mode})" if mode and "[" not in mode else claim.check


def _cell(claim: Claim) -> str:
    words = claim.outcome.replace("_", " ")
    return words if claim.ratio is None else f"{words} {number(claim.ratio)}"


def _gaps(claims: Sequence[Claim], missing: Sequence[str]) -> Iterable[Gap]:
    """What was not verified, by reason; every missing claim by name."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for claim in claims:
        if claim.outcome in ("unverified", "not_applicable"):
            key = (claim.outcome.replace("_", " "), shortened(claim.reason or "no reason given", 500))
            by_reason.setdefault(key, []).append(claim.id)
    for claim_id in missing:
        by_reason.setdefault(("missing", "not asked, or the run ended before it was concluded"), []).append(
            claim_id
        )
    for (outcome, reason), ids in sorted(by_reason.items(), key=lambda item: item[0][0], reverse=True):
        yield Gap(outcome, reason, tuple(ids))

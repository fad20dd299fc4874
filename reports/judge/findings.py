"""Claims that do not hold become findings: one per defect, tagged by who agrees and what is documented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

from refs.vocabulary import ASPECTS, SEVERITIES, Severity, Tag
from reports import cites
from reports.judge import docstring_search
from reports.judge.grouping import Grouping, Kind, covering, is_of_a_check
from reports.judge.prior import contradicts, matching
from reports.judge.standing import standing
from reports.model import CheckInfo, Claim, Diagnosis, Finding, Prior, PriorFinding, Run
from reports.order import LEADING, rank, worst
from reports.text import shortened

WORST_OF_ACCEPTABLE: Severity = "minor"
NOTHING_CHECKED = "A deviation here would not be noticed, so the verdict cannot be Faithful."
FAILURE_MODES = {
    "mode_missing": "What the references train with this mode can be neither reproduced nor loaded.",
    "not_offered": "Whether an adapter survives being saved and loaded cannot be told.",
    "unverified": NOTHING_CHECKED,
}


def findings(run: Run, prior: Prior | None = None) -> tuple[Finding, ...]:
    """The findings of every variant, worst first, numbered D1, D2, ... within the variant."""
    found: list[Finding] = []
    for variant in cites.variants_of(run):
        claims = [c for c in run.claims if c.variant == variant]
        groups = Grouping(claims, run.checks, run.declarations).groups()
        defects = [Defect(run, prior, kind, members, claims).finding() for kind, members in groups]
        defects.sort(key=lambda f: (rank(f.severity, SEVERITIES), rank(f.aspect, ASPECTS)))
        found += [dataclasses.replace(f, id=f"D{n}") for n, f in enumerate(defects, start=1)]
    return tuple(found)


class Defect:
    """One group of claims on its way to a finding."""

    def __init__(
        self, run: Run, prior: Prior | None, kind: Kind, claims: Sequence[Claim], siblings: Sequence[Claim]
    ) -> None:
        self.run, self.kind, self.siblings, self.members = run, kind, siblings, tuple(claims)
        self.claims = sorted(claims, key=self._precedence)
        self.lead = self.claims[0]
        self.prior = prior.variants.get(self.lead.variant) if prior else None

    def finding(self) -> Finding:
        """The finding, still without its number."""
        lead, known = self.lead, self.known
        agree, differ, not_asked = standing(lead, self.siblings, self.run.oracles)
        return Finding(
            id="",
            variant=lead.variant,
            aspect=lead.aspect,
            tag=self.tag,
            new=self.tag == "BUG" and known is None,
            overturn=self.overturn,
            severity=self.severity,
            title=shortened(self.title, 600),
            failure_mode=self.failure_mode,
            claims=tuple(c.id for c in self.claims),
            reference_cites=cites.reference_cites(lead.variant, lead.aspect),
            subject_cites=cites.subject_cites(self.run.subject, lead.variant, lead.aspect),
            agree=agree,
            differ=differ,
            not_asked=not_asked,
        )

    @property
    def overturn(self) -> bool:
        """Whether the prior review is shown to be wrong; what could not be told shows nothing."""
        if self.kind in ("unverified", "not_offered"):
            return False
        compared = self.known if self.kind in ("difference", "error") else None
        return contradicts(self.prior, compared, self.tag, self.severity)

    def info(self, claim: Claim) -> CheckInfo:
        """What is known of the claim's check; a check of another version of the audit is taken as major."""
        unknown = CheckInfo(claim.check, claim.aspect, "major", "", f"`{claim.check}` does not hold", "")
        return self.run.checks.get(claim.check, unknown)

    def _precedence(self, claim: Claim) -> tuple[int, ...]:
        """The claim that says best what is wrong comes first: diagnosed, severe, with a counterexample."""
        told = {c.check for c in self.members}
        follows = any(f in told for f in self.info(claim).follows)
        return (
            int(not self._names(claim) and claim.outcome != "error"),
            int(follows),
            rank(self.info(claim).severity, SEVERITIES),
            rank(claim.aspect, LEADING),
            int(claim.witness is None),
            self.siblings.index(claim),
        )

    def _names(self, claim: Claim) -> bool:
        """Whether the claim's diagnosis speaks of the whole group: a catalogued mistake does; what a check says of
        itself (a guard, a precision, a format) is no name for what makes other checks fail, unless those follow it."""
        if claim.diagnosis is None:
            return False
        catalogued = not is_of_a_check(claim.diagnosis)
        return catalogued or all(claim.check in (c.check, *self.info(c).follows) for c in self.members)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        return next((c.diagnosis for c in self.claims if self._names(c)), None)

    @cached_property
    def known(self) -> PriorFinding | None:
        """The line of the prior review that tells of this."""
        return matching(self.prior, self.claims)

    @cached_property
    def agreeing(self) -> bool:
        """Whether some reference agrees with the subject in everything that this group is about."""
        if self.diagnosis and self.diagnosis.agrees_with:
            return True
        failed = {c.question for c in self.claims if c.outcome == "fail" and c.check == self.lead.check}
        failed |= {c.question for c in self.claims if c.outcome == "fail" and self._names(c)}
        # Two references that are not known to differ cannot both be asked the same and one agree: had it the
        # failing case, it would have failed too.
        held = {c.question for c in self.siblings if c.outcome == "pass" and c.cause == "references_disagree"}
        return bool(failed) and failed <= held

    @cached_property
    def documented(self) -> bool:
        """Whether the subject's docstring, or a declaration that it bears out, states the difference."""
        declared = [d for c in self.claims if (d := covering(self.run.declarations, c))]
        if any(d.documented for d in declared):
            return True
        docstring = self.run.subject.docstrings.get(self.lead.variant, "")
        if self.kind == "mode_missing":
            return bool(self.lead.detail) and docstring_search.names(docstring, self.lead.detail or "")
        words = self.diagnosis.documented_by if self.diagnosis else ()
        return any(docstring_search.states(docstring, word) for word in words)

    @cached_property
    def tag(self) -> Tag:
        chosen = self.documented and self.diagnosis is not None  # a documented choice that we know of
        if self.kind == "error" or (self.kind == "difference" and not (self.agreeing or chosen)):
            return "BUG"
        return "OK-doc" if self.documented else "OK-undoc"

    @cached_property
    def severity(self) -> Severity:
        """By DESIGN §7; a diagnosis that says how bad its mistake is has the last word."""
        if self.kind in ("unverified", "mode_missing", "not_offered"):
            return "major"
        said = self.diagnosis.severity if self.diagnosis else None
        if self.tag == "BUG":
            return self._bug_severity(said)
        if self.kind == "declared" and said is None and self._gradient_differs():
            return "major"
        if said is None or said == "minor":
            return "none" if self.documented else "minor"
        return "major" if said == "critical" else said

    def _bug_severity(self, said: Severity | None) -> Severity:
        """The check's severity; the diagnosis' own, unless that is meant for the documented choice."""
        by_check = worst([self._check_severity(), WORST_OF_ACCEPTABLE])
        optional = self.diagnosis is not None and bool(self.diagnosis.documented_by)
        return worst([by_check, said]) if said and optional else said or by_check

    def _check_severity(self) -> Severity:
        told = [
            c for c in self.claims if c.check == self.lead.check or self._names(c) or c.outcome == "error"
        ]
        found = worst([self.info(c).severity for c in told])
        # A base dtype that is refused is a mode that is missing; where it is answered wrongly, a claim fails.
        refused = all(c.outcome == "error" and "dtype" in c.check for c in told)
        return "major" if refused and found == "critical" else found

    def _gradient_differs(self) -> bool:
        """Whether the deviation changes a gradient, by the checks that it makes fail."""
        grave = [c for c in self.claims if self.info(c).severity in ("critical", "major")]
        return any(c.aspect == "step0" or "gradient" in c.check for c in grave)

    @property
    def title(self) -> str:
        lead, aspect = self.lead, ASPECTS.get(self.lead.aspect, self.lead.aspect)
        reason = lead.reason or "no reason given"
        by_kind = {
            "error": f"The subject fails when `{lead.check}` is asked: {reason}",
            "unverified": f"{_aspects(self.claims)} cannot be verified: {reason}",
            "mode_missing": f"A mode of the references is missing: {reason}",
            "not_offered": f"{aspect.capitalize()} cannot be verified: the subject offers no save or no load",
            "declared": self._declared_title(),
        }
        kind = "error" if lead.outcome == "error" else self.kind
        return by_kind.get(kind) or (self.diagnosis.summary if self.diagnosis else self.info(lead).title)

    def _declared_title(self) -> str:
        declared = covering(self.run.declarations, self.lead)
        return declared.reason if declared else self.lead.reason or self.info(self.lead).title

    @property
    def failure_mode(self) -> str:
        if self.kind in FAILURE_MODES:
            return FAILURE_MODES[self.kind]
        return (self.diagnosis.failure_mode if self.diagnosis else "") or self.info(self.lead).failure_mode


def _aspects(claims: Sequence[Claim]) -> str:
    """The aspects of some claims in words: "Forward equation and training"."""
    names = sorted({c.aspect for c in claims}, key=lambda a: rank(a, ASPECTS))
    words = [ASPECTS.get(a, a) for a in names]
    return (", ".join(words[:-1]) + " and " + words[-1] if words[1:] else words[0]).capitalize()

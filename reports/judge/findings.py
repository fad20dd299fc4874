"""Claims that do not hold become findings: one per defect, tagged by who agrees and what is documented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

from refs.vocabulary import ASPECTS, SEVERITIES, Severity, Tag
from reports import cites, reference_fails
from reports.judge import docstring_search
from reports.judge.docstring_search import Statement
from reports.judge.grouping import Grouping, Key, covering, is_of_a_check, kind_of
from reports.judge.prior import contradicts, matching
from reports.judge.standing import standing
from reports.model import CheckInfo, Claim, Diagnosis, DocstringPart, Finding, Prior, PriorFinding, Run
from reports.order import LEADING, rank, worst
from reports.text import shortened

WORST_OF_ACCEPTABLE: Severity = "minor"
NOTHING_CHECKED = "A deviation here would not be noticed, so the verdict cannot be Faithful."
NOT_KNOWN = "what these claims ask is not known."
FAILURE_MODES = {
    "mode_missing": "What is trained with this mode elsewhere cannot be trained here in the same way.",
    "not_offered": "Whether an adapter survives being saved and loaded cannot be told.",
    "unverified": NOTHING_CHECKED,
    "wrapper": "The exception arose in the file that presents the library; of the library nothing was learnt here.",
    "raised": f"A caller gets this exception instead of an answer; {NOT_KNOWN}",
    "bad_answer": f"A caller gets this instead of a usable answer; {NOT_KNOWN}",
    "hangs": f"A caller waits; {NOT_KNOWN}",
    "state_changed": "What else runs in the process is changed by it.",
    "unsteady": "The same call gives different answers, so that no comparison can be repeated.",
}
ANSWERED = ("state_changed", "unsteady")  # errors of claims that got an answer all the same
UNTOLD = ("unverified", "mode_missing", "not_offered", "wrapper")
RECORDED = "recorded case"
# What a layer is asked about itself: says in which way it is no reference's, where no known mistake does.
ABOUT_THE_LAYER = ("forward.linear",)
# Differences of form: what is computed and kept is the same.
OF_STYLE = {"save_load.pickle"}


def findings(run: Run, prior: Prior | None = None) -> tuple[Finding, ...]:
    """The findings of every variant, worst first, numbered D1, D2, ... within the variant."""
    found: list[Finding] = []
    for variant in cites.variants_of(run):
        claims = [c for c in run.claims if c.variant == variant]
        groups = Grouping(claims, run.checks, run.declarations).groups()
        defects = [Defect(run, prior, key, members, claims).finding() for key, members in groups]
        defects.sort(key=lambda f: (rank(f.severity, SEVERITIES), rank(f.aspect, ASPECTS)))
        found += [dataclasses.replace(f, id=f"D{n}") for n, f in enumerate(defects, start=1)]
    return tuple(found)


class Defect:
    """One group of claims on its way to a finding."""

    def __init__(
        self, run: Run, prior: Prior | None, key: Key, claims: Sequence[Claim], siblings: Sequence[Claim]
    ) -> None:
        self.run, self.key, self.siblings, self.members = run, key, siblings, tuple(claims)
        self.kind = kind_of(key)
        self.claims = sorted(claims, key=self._precedence)
        self.lead = self.claims[0]
        self.prior = prior.variants.get(self.lead.variant) if prior else None
        if self.warned:
            self.kind = "mode_missing"

    def finding(self) -> Finding:
        """The finding, still without its number."""
        lead, known = self.lead, self.known
        agree, differ, not_asked = standing(lead, self.siblings, self.run.oracles)
        return Finding(
            id="",
            variant=lead.variant,
            aspect=lead.aspect,
            tag=self.tag,
            new=self.tag == "BUG" and self.prior is not None and known is None,
            overturn=self.overturn,
            severity=self.severity,
            title=shortened(self.title, 600),
            failure_mode=self.failure_mode,
            claims=tuple(c.id for c in self.claims),
            reference_cites=cites.reference_cites(lead.variant, self.cited),
            subject_cites=cites.subject_cites(self.run.subject, lead.variant, self.place or lead.aspect),
            agree=agree,
            differ=differ,
            not_asked=not_asked,
            mistake=self.mistake,
            heard=self.heard,
            stated=self.stated.words if self.stated else "",
            also_fails=self.also_fails,
        )

    @cached_property
    def warned(self) -> str:
        """The warning by which the subject refuses dropout, where that is what it does: a mode that it lacks."""
        if self.mistake is None or self.mistake != f"{self.lead.variant}.dropout_ignored":
            return ""
        said = docstring_search.leaving_out([DocstringPart("", 0, w) for w in self.heard], "dropout")
        return said.words if said else ""

    @property
    def cited(self) -> str:
        """The aspect whose lines decide what the first claim is about: a gradient's are those of the gradient."""
        return self.place or ("step0" if "gradient" in self.lead.check else self.lead.aspect)

    @property
    def place(self) -> str:
        """The aspect whose lines decide the mistake that all is due to, where that is known."""
        return self.diagnosis.place if self.diagnosis else ""

    @property
    def overturn(self) -> bool:
        """Whether the prior review is shown to be wrong; what could not be told shows nothing."""
        if self.kind in ("unverified", "not_offered", "wrapper"):
            return False
        compared = self.known if self.kind in ("difference", "error") else None
        return contradicts(self.prior, compared, self.tag, self.severity)

    @property
    def mistake(self) -> str | None:
        """The mistake that all of it is due to, where one is known."""
        return self.key[1] if self.key[0] == "mistake" else None

    @property
    def heard(self) -> tuple[str, ...]:
        """What the subject says aloud when its first claim is asked: a warning is part of what it does."""
        return self.lead.witness.heard if self.lead.witness else ()

    @property
    def also_fails(self) -> tuple[str, ...]:
        """The references that fail this check for the same reason when they are audited themselves."""
        if self.kind not in ("difference", "mode_missing", "error"):
            return ()
        return reference_fails.failing(self.lead, self.mistake)

    def info(self, claim: Claim) -> CheckInfo:
        """What is known of the claim's check; a check of another version of the audit is taken as major."""
        unknown = CheckInfo(claim.check, claim.aspect, "major", "", f"`{claim.check}` does not hold", "")
        return self.run.checks.get(claim.check, unknown)

    def named(self, claim: Claim) -> Diagnosis | None:
        """What the claim says of the group's mistake: as its first explanation, or as a further one."""
        told = (claim.diagnosis, *claim.further) if claim.diagnosis else claim.further
        return next((d for d in told if d.mistake == self.mistake), None)

    def _precedence(self, claim: Claim) -> tuple[int, ...]:
        """The claim that says best what is wrong comes first: it names the mistake before any other, it is severe."""
        told = {c.check for c in self.members}
        follows = any(f in told for f in self.info(claim).follows)
        named = self.named(claim)
        return (
            2 if named is None else int(named is not claim.diagnosis),
            int(claim.witness is not None and RECORDED in claim.witness.case),  # not shrunk
            int(follows),
            rank(claim.aspect, LEADING) if self._is_grave_in_itself(claim) else 0,
            rank(self.info(claim).severity, SEVERITIES),
            rank(claim.aspect, LEADING),
            int(claim.witness is None),
            self.siblings.index(claim),
        )

    def _is_grave_in_itself(self, claim: Claim) -> bool:
        """Whether the claim says of itself what is critical in whatever check: the nearest to the tensors leads."""
        named = self.named(claim)
        return named is not None and is_of_a_check(named) and named.severity == "critical"

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        return next((d for c in self.claims if (d := self.named(c))), None)

    @cached_property
    def known(self) -> PriorFinding | None:
        """The line of the prior review that tells of this."""
        return matching(self.prior, self.claims, self.mistake)

    @cached_property
    def agreeing(self) -> bool:
        """Whether some reference agrees with the subject in everything that this group is about."""
        if self.diagnosis and self.diagnosis.agrees_with:
            return True
        failed = {c.question for c in self.claims if c.outcome == "fail" and c.check == self.lead.check}
        failed |= {c.question for c in self.claims if c.outcome == "fail" and self.named(c)}
        # Two references that are not known to differ cannot both be asked the same and one agree: had it the
        # failing case, it would have failed too. Neither agrees who differs on the failing case itself.
        differ = self.lead.witness.differ if self.lead.witness else ()
        held = {
            c.question
            for c in self.siblings
            if c.outcome == "pass" and c.cause == "references_disagree" and c.oracle not in differ
        }
        return bool(failed) and failed <= held

    @cached_property
    def stated(self) -> Statement | None:
        """The sentence of the subject's docstrings that states the difference."""
        parts = docstring_search.parts_of(self.run.subject, self.lead.variant)
        if self.kind == "mode_missing":
            return docstring_search.leaving_out(parts, "dropout" if self.warned else self.lead.detail or "")
        phrases = self.diagnosis.documented_by if self.diagnosis else ()
        return docstring_search.stating(parts, phrases)

    @cached_property
    def documented(self) -> bool:
        """Whether the subject's docstring, or a declaration that it bears out, states the difference."""
        declared = [d for c in self.claims if (d := covering(self.run.declarations, c))]
        return any(d.documented for d in declared) or self.stated is not None

    @cached_property
    def tag(self) -> Tag:
        chosen = self.documented and self.diagnosis is not None  # a documented choice that we know of
        if self.kind == "error" or (self.kind == "difference" and not (self.agreeing or chosen)):
            return "BUG"
        if self.mistake in OF_STYLE:
            return "STYLE"
        return "OK-doc" if self.documented else "OK-undoc"

    @cached_property
    def severity(self) -> Severity:
        """By DESIGN §7: the worst of its members, a choice that is documented or that a reference shares excepted."""
        if self.kind in UNTOLD:
            return "major"
        if self.tag == "BUG":
            return worst([*map(self._severity_of, self._own), WORST_OF_ACCEPTABLE])
        said = self.diagnosis.severity if self.diagnosis else None
        if self.kind == "declared" and said is None and self._gradient_differs():
            return "major"
        if said is None or said == "minor":
            return "none" if self.documented else "minor"
        return "major" if said == "critical" else said

    @property
    def _own(self) -> list[Claim]:
        """The claims that say how bad it is: one that fails by another mistake first counts as that one's."""
        own = [c for c in self.claims if (named := self.named(c)) is None or named is c.diagnosis]
        return own or list(self.claims)

    def _severity_of(self, claim: Claim) -> Severity:
        """How bad one member is: as bad as its check, unless the mistake itself is known to be less or more."""
        by_check, named = self.info(claim).severity, self.named(claim)
        # A base dtype or a context that is refused is a missing mode; where it is answered wrongly, a claim fails.
        of_dtypes = "dtype" in claim.check or claim.aspect == "contexts" or claim.diagnosis is not None
        refused = claim.outcome == "error" and of_dtypes
        if refused and by_check == "critical":
            return "major"
        if named is None or named.severity is None:
            return by_check
        # What is said of a choice holds where it is documented; here it is not. What is minor is so either way.
        chosen = bool(named.documented_by) and named.severity != "minor"
        return worst([by_check, named.severity]) if chosen else named.severity

    def _gradient_differs(self) -> bool:
        """Whether the deviation changes a gradient, by the checks that it makes fail."""
        grave = [c for c in self.claims if self.info(c).severity in ("critical", "major")]
        return any(c.aspect == "step0" or "gradient" in c.check for c in grave)

    @property
    def title(self) -> str:
        lead, aspect = self.lead, ASPECTS.get(self.lead.aspect, self.lead.aspect)
        reason = (
            f"dropout is refused with a warning, {self.warned}"
            if self.warned
            else lead.reason or "no reason given"
        )
        by_kind = {
            "error": f"{lead.diagnosis.summary}: {reason}" if lead.diagnosis else reason,
            "wrapper": f"The subject's own file fails, so that the library could not be asked: {reason}",
            "unverified": f"{_aspects(self.claims)} cannot be verified{self._in_part()}: {reason}",
            "mode_missing": f"A mode of the references is missing: {reason}",
            "not_offered": f"{aspect.capitalize()} cannot be verified: the subject offers no save or no load",
            "declared": self._declared_title(),
        }
        return by_kind.get(self.kind) or (self.diagnosis.summary if self.diagnosis else self._unexplained())

    def _unexplained(self) -> str:
        """What the first claim asks and, where the layer alone shows it, in which way it is wrong."""
        title = self.info(self.lead).title
        shown = next((c for c in self.claims[1:] if c.check in ABOUT_THE_LAYER), None)
        if shown is None or self.lead.aspect == "contexts":  # how it is asked decides there
            return title
        return f"{title}: {shown.diagnosis.summary if shown.diagnosis else self.info(shown).title}"

    def _in_part(self) -> str:
        """ " in part" where other claims of these aspects were answered."""
        aspects = {c.aspect for c in self.claims}
        told = any(c.aspect in aspects and c.outcome in ("pass", "fail", "declared") for c in self.siblings)
        return " in part" if told else ""

    def _declared_title(self) -> str:
        declared = covering(self.run.declarations, self.lead)
        return declared.reason if declared else self.lead.reason or self.info(self.lead).title

    @property
    def failure_mode(self) -> str:
        if self.kind == "error" and self.lead.diagnosis:
            return self.lead.diagnosis.failure_mode
        if self.kind == "error":
            told = FAILURE_MODES.get(self.lead.cause or "", FAILURE_MODES["raised"])
            alone = len({c.check for c in self.claims}) == 1 and self.lead.cause not in ANSWERED
            return (
                f"{told[:-1]}, which is whether this holds: {self.info(self.lead).question}"
                if alone
                else told
            )
        if self.kind in FAILURE_MODES:
            return FAILURE_MODES[self.kind]
        return (self.diagnosis.failure_mode if self.diagnosis else "") or self.info(self.lead).failure_mode


def _aspects(claims: Sequence[Claim]) -> str:
    """The aspects of some claims in words: "Forward equation and training"."""
    names = sorted({c.aspect for c in claims}, key=lambda a: rank(a, ASPECTS))
    words = [ASPECTS.get(a, a) for a in names]
    return (", ".join(words[:-1]) + " and " + words[-1] if words[1:] else words[0]).capitalize()

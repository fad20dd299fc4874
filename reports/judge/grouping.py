"""Which claims tell of one and the same defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from reports.model import ALONE, OF_DTYPES, CheckInfo, Claim, Declaration, Diagnosis

Key = tuple[str | None, ...]
Kind = str  # "difference" "error" "wrapper" "declared" "unverified" "mode_missing" "not_offered"
# Questions of yes or no, which many mistakes answer alike: where what they follow is broken, that is the explanation.
SAYS_LITTLE = {
    "step0.dead_parameters",
    "training.alive",
    "init.identity",
    "dtype.identity",
    "dropout.expectation",
}
# Claims that compare outputs first: where a gradient is what differs, a wrong gradient is nearer than all else.
OUTPUTS_FIRST = {"targets.model_forward"}
WRONG: Key = ("check", "forward.random_parameters")
# aspect -> methods without which it cannot be told of any implementation; the others are a matter of taste.
NEEDED_METHODS = {"save_load": {"save", "load"}}


def covering(declarations: Iterable[Declaration], claim: Claim) -> Declaration | None:
    """The declaration that speaks of this claim, if one does."""
    return next((d for d in declarations if d.covers(claim)), None)


def is_of_a_check(diagnosis: Diagnosis) -> bool:
    """Whether a check says it of itself ("forward.guard"), rather than the mistakes catalogue ("lora.no_scale")."""
    return diagnosis.source == "check"


def is_missing_mode(claim: Claim) -> bool:
    """A mode of the references that the subject lacks: a deviation although nothing was compared."""
    return claim.outcome == "not_applicable" and claim.cause == "mode_missing"


def is_special(claim: Claim) -> bool:
    """Not applicable, and yet a gap of the subject's."""
    method = claim.cause == "not_offered" and claim.detail in NEEDED_METHODS.get(claim.aspect, ())
    return is_missing_mode(claim) or (claim.outcome == "not_applicable" and method)


class Grouping:
    """The claims of one variant that do not hold, put together defect by defect."""

    def __init__(
        self, claims: Iterable[Claim], checks: Mapping[str, CheckInfo], declarations: Iterable[Declaration]
    ) -> None:
        self.claims, self.checks = list(claims), checks
        self.declarations = list(declarations)
        self.broken = [c for c in self.claims if c.outcome == "fail"]
        alone = [c for c in self.broken if apart(c) == ALONE]
        self.alone = {("mistake", c.diagnosis.mistake) if c.diagnosis else ("check", c.check) for c in alone}
        plain = [c for c in self.broken if c.check not in SAYS_LITTLE]
        self.told = {c.diagnosis.mistake for c in plain if c.diagnosis and not is_of_a_check(c.diagnosis)}
        named = [d for c in self.broken for d in (c.diagnosis, *c.further) if d]
        self.accepted: set[Key] = {("mistake", d.mistake) for d in named if d.agrees_with}
        self.held = {(c.check, c.oracle) for c in self.claims if c.outcome == "pass"}

    def groups(self) -> list[tuple[Key, list[Claim]]]:
        """Every defect with its claims, in the order of the first claim of each."""
        groups: dict[Key, list[Claim]] = {}
        for claim in self.claims:
            for key in self.keys(claim):
                groups.setdefault(key, []).append(claim)
        return list(groups.items())

    def keys(self, claim: Claim) -> tuple[Key, ...]:
        """What the claim is grouped by: one key for each mistake that it shows; none where it holds."""
        if claim.cause == "audit_failed":
            return ()  # the audit's own mistake is no finding of the subject
        if claim.cause == "wrapper":
            return (("wrapper", claim.detail or claim.reason),)
        if claim.outcome == "error":
            known = claim.diagnosis.mistake if claim.diagnosis else None  # of one cause wherever it raises
            return (("error", claim.cause, known or claim.detail or claim.reason),)
        if claim.outcome == "fail":
            return self._defects(claim, frozenset())
        if claim.outcome == "declared":
            declared = covering(self.declarations, claim)
            return (("declared", declared.reason if declared else claim.reason),)
        if claim.outcome == "unverified":
            return (("unverified", claim.reason),)
        if not is_special(claim):
            return ()
        # Without save, or without load, every aspect that needs both is told as one.
        return ((claim.cause, claim.reason if is_missing_mode(claim) else "save or load"),)

    def _defects(self, claim: Claim, seen: frozenset[str]) -> tuple[Key, ...]:
        """The mistakes that the claim names; of one that names none, those that explain all that it follows.

        What a check says of itself, or with a yes or a no, explains nothing where what it follows is broken already.
        """
        own = claim.diagnosis is not None and is_of_a_check(claim.diagnosis)
        if claim.diagnosis and claim.check in SAYS_LITTLE and claim.diagnosis.mistake in self.told:
            return (("mistake", claim.diagnosis.mistake),)  # which a question of more words tells, too
        inherited = self._inherited(claim, seen)
        if claim.aspect == "merge" and inherited and all(key in self.accepted for key in inherited):
            inherited = ()  # what is merged has to be what is computed, whichever reference's form that is
        if inherited and (own or claim.diagnosis is None or claim.check in SAYS_LITTLE):
            return inherited
        if claim.diagnosis is None:
            return (("check", claim.check),)
        named = dict.fromkeys(d.mistake for d in (claim.diagnosis, *claim.further))
        return tuple(("mistake", mistake) for mistake in named)

    def _inherited(self, claim: Claim, seen: frozenset[str]) -> tuple[Key, ...]:
        """The defect that the broken claims which explain this one show: the one that most of them do.

        What only some show explains it not, unless each of them shows a mistake that is known by name: several at once.
        A wrong function that nothing explains is why whatever follows it fails.
        """
        parents = [p for p in self._parents(claim) if p.check not in seen]
        if claim.check in SAYS_LITTLE:  # a start that is no identity is due to where the tensors start
            parents = [p for p in parents if p.aspect == claim.aspect] or parents[:1]
        if claim.check in OUTPUTS_FIRST and of_gradients(claim):
            parents = [p for p in parents if of_gradients(p)] or parents
        shown = [self._defects(p, seen | {claim.check}) for p in parents]
        # Of what stands alone and what does not, the check that is named first is the nearer one.
        if any(key in self.alone for keys in shown for key in keys):
            return shown[0]
        often = Counter(key for keys in shown for key in keys).most_common(1)
        known = all(key[0] == "mistake" for keys in shown for key in keys)
        common = tuple(key for key, times in often if known or times == len(shown))
        return common or tuple(
            key for key in dict.fromkeys(k for keys in shown for k in keys) if key == WRONG
        )

    def _parents(self, claim: Claim) -> list[Claim]:
        """Failing claims that explain this one: of a check that it follows, against the same oracle.

        An exception explains no difference: what would have been answered instead is not known.
        """
        info = self.checks.get(claim.check)
        parents: list[Claim] = []
        for check in info.follows if info else ():
            broken = [c for c in self.broken if c.check == check != claim.check]
            candidates = [c for c in broken if explains(c) and apart(claim) in (None, apart(c))]
            same = [c for c in candidates if c.oracle == claim.oracle]
            parents += same or ([] if (check, claim.oracle) in self.held else candidates)
        # What is wrong for no reason of others' is nearer than those that it follows.
        return [p for p in parents if apart(p) == ALONE] or parents


def explains(claim: Claim) -> bool:
    """Whether a failing claim can be why another fails: not where its check calls it a matter of taste."""
    own = claim.diagnosis
    return own is None or not (is_of_a_check(own) and own.severity == "minor")


def apart(claim: Claim) -> str | None:
    """What sets a failing claim apart, so that claims which fail otherwise do not explain it."""
    return claim.detail if claim.outcome == "fail" and claim.detail in (OF_DTYPES, ALONE) else None


def of_gradients(claim: Claim) -> bool:
    """Whether what differs is a gradient, or comes after gradients, and no output."""
    what = claim.witness.quantity if claim.witness else ""
    return "gradient" in claim.check or claim.aspect == "step0" or "gradient" in what or "steps" in what


def kind_of(key: Key) -> Kind:
    """What kind of finding a group becomes."""
    return "difference" if key[0] in ("mistake", "check") else str(key[0])

"""A failing claim explained: the smallest set of catalogued mistakes that computes what the subject computes.

The subject's portrait (:mod:`harness.compare.portrait`) is held against the right equation's: what differs is wrong. A
set of mistakes explains it that reproduces every wrong quantity that it touches, on every case, and is right wherever
the subject is right. What no set reproduces stays unexplained, and is told as what is equal and what is not.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from harness.cases.layer_cases import Case
from harness.cases.recorded_cases import Recorded
from harness.compare.abilities import abilities_of
from harness.compare.context import Context, Worst
from harness.compare.layer import adapt
from harness.compare.loose_parameters import own_parameters
from harness.compare.portrait import TENSORS, Sitting, Value, Values, own_of, same
from harness.compare.probing import far_layer, is_the_bases
from harness.compare.thresholds import ALL_BUT_A_FEW, HALF_DIGITS, THRESHOLDS
from harness.engine.checks import CHECKS, Check
from oracles.equation import Equation
from oracles.implementation import AdapterSpec, Implementation
from oracles.mistakes import Mistake, mistaken, mistakes_of
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS, Variant
from reports.model import Diagnosis

# Small enough to be quick, large enough that few mistakes coincide: distinct sizes, even rank, α ≠ r, with and
# without a bias.
GENERIC = (
    {"in_features": 6, "out_features": 5, "rank": 4, "alpha": 6.0, "batch": (5,), "seed": 1, "bias": False},
    {"in_features": 4, "out_features": 7, "rank": 2, "alpha": 5.0, "batch": (3,), "seed": 7, "bias": True},
)
MOST_PAIRED, MOST_TRIPLED = 24, 14
EVALUATED = "output in evaluation mode"
# Said of the function itself alone: a start or a gradient can be nearly right for other reasons.
CAN_BE_COARSE = ("forward.random_parameters",)
COARSE = Diagnosis(
    "forward.coarse",
    "the output is the reference's to the digits of half precision only",
    "something is rounded to bfloat16 or float16 on the way, or a small constant is added: small updates are lost, and "
    "a checkpoint answers otherwise than elsewhere",
    remedy="look for a cast to half precision on the way, and for an epsilon beside a norm or in a division",
)
NEARLY = Diagnosis(
    "forward.nearly",
    "the output is a little further from the reference's than rounding explains",
    "a small constant (an epsilon in a norm or a division) is added on the way, or some digits are lost: a checkpoint "
    "answers a little otherwise than elsewhere, more so where norms are small",
    documented_by=("epsilon", r"\beps\b"),
    remedy="look for an epsilon beside a norm, and leave it out or say in the docstring that it is there",
)

NO_EFFECT = Diagnosis(
    "forward.no_effect",
    "the layer answers as its base does, whatever the adapter's tensors are",
    "what is trained or loaded changes nothing",
    remedy="compute the output from the very tensors that are trained, saved and loaded",
)

ENOUGH = 3  # cases of a regime, of which some have other sizes

Key = tuple[int, str, str]  # case, part, quantity
Held = tuple[dict | None, dict | None]  # a subject's parameters far from its start, and at it
Set = tuple[Mistake, ...]


@dataclass(frozen=True)
class Stage:
    """Parts of a portrait that are explained together, and what the mistakes that can explain them speak of."""

    parts: tuple[str, ...]
    speaks_of: frozenset[str]


STAGES = (
    Stage(("roles",), frozenset({"roles"})),  # what does not train has no gradient in the function either
    Stage(("function",), frozenset({"output", "gradient"})),
    Stage(("start", "law"), frozenset({"start"})),
    Stage(("dropout",), frozenset({"dropout"})),
    Stage(("dtype",), frozenset({"dtype"})),
)


@dataclass(frozen=True)
class Explanation:
    """``mistakes`` together compute what the subject computes, but for ``unexplained``; ``equal`` is right."""

    mistakes: tuple[Mistake, ...]
    unexplained: tuple[str, ...]
    equal: tuple[str, ...]
    reach: Mapping[str, int] = field(
        default_factory=dict
    )  # mistake -> how many quantities it changes by itself

    @property
    def words(self) -> str:
        """What is the reference's and what is not, for a finding that nothing explains."""
        if not self.unexplained:
            return ""
        equal = f"; equal: {', '.join(_in_short(self.equal))}" if self.equal else ""
        return f"not the reference's: {', '.join(_in_short(self.unexplained))}{equal}"


def _in_short(quantities: Sequence[str]) -> list[str]:
    """Without what dropout, evaluation or a first call makes of a quantity that is there by itself."""
    beside = re.compile(r" (with dropout|in evaluation mode|on the first call).*")
    return [q for q in quantities if beside.sub("", q) == q or beside.sub("", q) not in quantities]


class Portraits:
    """The portraits of one implementation on the cases, part by part, each taken once."""

    def __init__(self, who: Implementation, cases: Sequence[Case], held: Sequence[Held]) -> None:
        self.sittings = [Sitting(who, case, *at) for case, at in zip(cases, held, strict=True)]
        self._taken: dict[tuple[int, str], Values | None] = {}

    def part(self, case: int, name: str) -> Values | None:
        """One part on one case; a law is the same whatever the case."""
        if name == "law" and case:
            return None
        key = (case, name)
        if key not in self._taken:
            self._taken[key] = self.sittings[case].part(name)
        return self._taken[key]

    def value(self, key: Key) -> Value | None:
        """One quantity; None where the part says nothing."""
        return (self.part(key[0], key[1]) or {}).get(key[2])


class Search:
    """The search for what explains one subject, of one variant in one of its modes, stage by stage.

    What the function is does not depend on where it starts, nor what dropout does to it on its dtype: each stage adds
    to the mistakes found so far the smallest set that reproduces most of what is still wrong there, and undoes nothing.
    """

    def __init__(self, subject: Implementation, variant: Variant, spec: AdapterSpec) -> None:
        self.variant = variant
        abilities = abilities_of(subject, variant.id)
        cases = [abilities.fitted(_generic(spec, generic)) for generic in GENERIC]
        held = [_held(subject, case) for case in cases]
        # One that the subject answers first: what is the same on every case is asked of the first alone.
        order = sorted(range(len(cases)), key=lambda i: held[i][0] is None)
        self.cases, self.held = [cases[i] for i in order], [held[i] for i in order]
        self.subject = Portraits(subject, self.cases, self.held)
        self.right = Portraits(Equation(), self.cases, self.held)
        self.left_out = ""  # a quantity that is not looked at

    def portraits(self, mistakes: Set) -> Portraits:
        """Of the equation with these mistakes, at the subject's parameters."""
        if not mistakes:
            return self.right
        return Portraits(mistaken(*(m.id for m in mistakes)), self.cases, self.held)

    def told(self, parts: Sequence[str]) -> list[Key]:
        """Every quantity of these parts on which the subject and the right equation both say something."""
        keys = []
        for name, case in itertools.product(parts, range(len(self.cases))):
            mine, right = self.subject.part(case, name), self.right.part(case, name)
            if mine is not None and right is not None:
                quantities = dict.fromkeys([*right, *mine])
                keys += [(case, name, quantity) for quantity in quantities if quantity != self.left_out]
        return keys

    def same(self, key: Key, a: Value | None, b: Value | None) -> bool:
        """Whether two values of a quantity are the same, its size being the right one's."""
        if a is None and b is None:
            return True  # neither has such a tensor
        right = self.right.value(key)
        return same(
            a, b, key[1], key[2], 0.0 if right is None or isinstance(right, str) else float(right.norm())
        )

    def wrong(self, found: Set, parts: Sequence[str]) -> list[Key]:
        """The quantities in which the subject is not what it would be with the mistakes found."""
        theirs = self.portraits(found)
        return [k for k in self.told(parts) if not self.same(k, self.subject.value(k), theirs.value(k))]

    def explanation(self) -> Explanation:
        """What explains the subject, and what is left."""
        found: Set = ()
        for number, stage in enumerate(STAGES):
            before = [p for s in STAGES[:number] for p in s.parts]
            added = self._of_a_known_output(found, self._stage(found, stage, before), stage)
            found += added or self._of_a_known_output(found, self._in_training(found, stage, before), stage)
        parts = [p for stage in STAGES for p in stage.parts]
        left, wrong = _quantities(self.wrong(found, parts)), _quantities(self.wrong((), parts))
        reach = {m.id: self._reach(m, parts) for m in found}
        equal = tuple(q for q in _quantities(self.told(parts)) if q not in wrong)
        return Explanation(found, left, equal, reach)

    def _of_a_known_output(self, found: Set, added: Set, stage: Stage) -> Set:
        """Without what is about gradients alone where the output is not explained: they are another function's."""
        if not added or "output" not in _quantities(self.wrong((*found, *added), stage.parts)):
            return added
        return tuple(m for m in added if m.speaks_of - {"gradient"})

    def _reach(self, mistake: Mistake, parts: Sequence[str]) -> int:
        """How many quantities of the right equation a mistake changes."""
        theirs = self.portraits((mistake,))
        return sum(not self.same(k, theirs.value(k), self.right.value(k)) for k in self.told(parts))

    def _stage(self, found: Set, stage: Stage, before: Sequence[str]) -> Set:
        """The smallest set to add that explains most of a stage; the first in the catalogue's order of several."""
        wrong = frozenset(self.wrong(found, stage.parts))
        best: Set = ()
        most = 0
        for added in self._candidates(found, stage, wrong) if wrong else ():
            covered = self._covered(found, added, wrong, [*stage.parts, *before])
            if covered > most:
                best, most = added, covered
            if most == len(wrong):
                break
        return best

    def _in_training(self, found: Set, stage: Stage, before: Sequence[str]) -> Set:
        """What explains a function that is wrong in training mode alone, as where evaluation folds the adapter in."""
        wrong = _quantities(self.wrong(found, stage.parts))
        if not wrong or EVALUATED not in _quantities(self.told(stage.parts)) or EVALUATED in wrong:
            return ()
        self.left_out = EVALUATED
        try:
            return self._stage(found, stage, before)
        finally:
            self.left_out = ""

    def _candidates(self, found: Set, stage: Stage, wrong: frozenset[Key]) -> Iterator[Set]:
        """Every single entry that speaks of the stage, then pairs and triples of those that touch what is wrong."""
        entries = [
            m for m in mistakes_of(self.variant.id) if m not in found and m.speaks_of & stage.speaks_of
        ]
        yield from ((m,) for m in entries)
        touching = [m for m in entries if self._touches(found, m, stage, wrong)]
        touching.sort(key=lambda m: not self._has_its_tensors((*found, m)))
        for size, most in ((2, MOST_PAIRED), (3, MOST_TRIPLED)):
            yield from (c for c in itertools.combinations(touching[:most], size) if _of_different_parts(c))

    def _has_its_tensors(self, found: Set) -> bool:
        """Whether with these mistakes the tensors are the subject's, where they are not the reference's."""
        theirs = self.portraits(found)
        keys = [k for k in self.told(("start",)) if k[2] == TENSORS]
        other = [k for k in keys if not self.same(k, self.subject.value(k), self.right.value(k))]
        return bool(other) and all(self.same(k, self.subject.value(k), theirs.value(k)) for k in other)

    def _covered(self, found: Set, added: Set, wrong: frozenset[Key], parts: Sequence[str]) -> int:
        """How many of the wrong quantities the set reproduces; 0 where it computes what the subject does not."""
        theirs, before, covered = self.portraits((*found, *added)), self.portraits(found), 0
        for key in self.told(parts):
            value = theirs.value(key)
            if self.same(key, self.subject.value(key), value):
                covered += key in wrong
            elif not self.same(key, value, before.value(key)):
                return 0
        return covered

    def _touches(self, found: Set, mistake: Mistake, stage: Stage, wrong: frozenset[Key]) -> bool:
        """Whether the mistake changes something wrong, and nothing in which the subject is right."""
        theirs, before, touched = self.portraits((*found, mistake)), self.portraits(found), False
        for key in self.told(stage.parts):
            if not self.same(key, theirs.value(key), before.value(key)):
                if key not in wrong:
                    return False
                touched = True
        return touched


def _of_different_parts(mistakes: Set) -> bool:
    """Whether no two of them replace the same part of the equation."""
    parts = [part for m in mistakes for part in m.parts]
    return len(parts) == len(set(parts))


def _quantities(keys: Sequence[Key]) -> tuple[str, ...]:
    """The names of quantities, each once."""
    return tuple(dict.fromkeys(key[2] for key in keys))


def _generic(spec: AdapterSpec, generic: dict) -> Case:
    """One of the small cases, in the modes of the failing one."""
    sizes = {k: v for k, v in generic.items() if k not in ("rank", "alpha")}
    made = dataclasses.replace(spec, rank=generic["rank"], alpha=generic["alpha"], dropout=0.0)
    return Case(made, **sizes)


def _held(subject: Implementation, case: Case) -> Held:
    """The subject's own parameters far from its start, as it holds them, and its start; None where it fails."""
    try:
        sitting = Sitting(subject, case)
        return sitting.moved().values() | own_of(case), sitting.layer().values()
    except Exception:
        return None, None


@lru_cache(maxsize=64)
def _searched(subject: Implementation, variant: str, modes: tuple[str, ...]) -> Search:
    record, spec = VARIANTS[variant], AdapterSpec(variant)
    for mode in modes:
        spec = record.option(mode).put(spec, True)
    return Search(subject, record, spec)


@lru_cache(maxsize=64)
def explanation_of(subject: Implementation, variant: str, modes: tuple[str, ...] = ()) -> Explanation:
    """What explains a subject; asked once per variant and mode."""
    return _searched(subject, variant, modes).explanation()


def explanation_at(subject: Implementation, variant: Variant, case: Case) -> Explanation:
    """What explains a subject in the modes of a case."""
    return explanation_of(subject, variant.id, tuple(m for m in variant.modes if getattr(case.spec, m)))


def diagnose(check: Check, context: Context, failing: Case) -> tuple[Diagnosis, ...]:
    """The mistakes that explain the failure, the one that it is due to first; empty if none does.

    Each fails the check by itself, where the right equation holds: at the failing case, or at one of the small ones.
    A recording has no other case, and some contexts ask what no equation has: there the right one fails as well.
    """
    found = explanation_at(context.subject, context.variant, failing)
    failing = context.abilities.fitted(failing)
    right = _asking(context, Equation())
    asked = [failing, *map(context.abilities.fitted, others(failing))] if found.mistakes else []
    at = [case for case in asked if holds(check, right, case)]
    if failing in at and _holds_with(check, context, found.mistakes, failing):
        return ()  # what fails there is something else
    due = [(m, [case for case in at if fails(check, context, m, case)]) for m in found.mistakes]
    there = [(m, where) for m, where in due if failing in where]
    due = there or [(m, where) for m, where in due if where]
    # The one that changes least is what the claim is due to: a wrong function also has wrong gradients.
    due.sort(key=lambda entry: found.reach[entry[0].id])
    return tuple(named(m, described(m, len(where), len(at)), context.subject, failing) for m, where in due)


def named(mistake: Mistake, told: Diagnosis, subject: Implementation, case: Case) -> Diagnosis:
    """What the adapter has of its own with its name in the subject; from zero, a reference may have it as an option."""
    if not mistake.has_own:
        return told
    seed_torch(case.seed)
    layer = adapt(subject, case.base(), case.spec)
    own = own_parameters(layer, case)
    names = ", ".join(f"`{name}`" for name in own)
    summary = told.summary.replace(" of its own", f" of its own ({names})") if names else told.summary
    from_zero = bool(own) and not any(bool(t.any()) for t in own.values())
    agrees = mistake.agrees_from_zero if from_zero else told.agrees_with
    return dataclasses.replace(told, summary=summary, agrees_with=agrees)


def coarse(check: Check, context: Context, failing: Case) -> tuple[Diagnosis, ...]:
    """What is said of a function that nothing explains and that, on every case, is the base's or nearly right."""
    if check.id not in CAN_BE_COARSE or failing.dtype not in ("float32", "float64"):
        return ()
    failing, *small = (context.abilities.fitted(case) for case in (failing, *others(failing)))
    if all(_answers_as_its_base(context, case) for case in (failing, *small)):
        return (NO_EFFECT,)
    # A recording has no other case: one may be near by chance, and the equation is asked about the others.
    elsewhere = dataclasses.replace(context, oracle=Equation()) if isinstance(failing, Recorded) else context
    for told, roundoffs in ((NEARLY, ALL_BUT_A_FEW), (COARSE, HALF_DIGITS)):
        near, near_elsewhere = (_within(c, roundoffs) for c in (context, elsewhere))
        if holds(check, near, failing) and all(holds(check, near_elsewhere, case) for case in small):
            return (told,)
    return ()


def _within(context: Context, roundoffs: float) -> Context:
    """The question, to that many roundoffs."""
    return dataclasses.replace(context, worst=Worst(), slack=roundoffs / THRESHOLDS["formula"])


def in_a_regime(check: Check, context: Context, failing: Case, where: str) -> tuple[Diagnosis, ...]:
    """The catalogued mistake that the subject has ``where`` it fails, and not elsewhere: "only for rank > 8, ...".

    On the failing case and on others of that regime, the check holds against the equation with the mistake.
    """
    if isinstance(failing, Recorded) or check.info.aspect != "forward":
        return ()
    there = [case for case in _neighbours(failing) if not holds(check, context, case)]
    entries = filter(_can_be, mistakes_of(context.variant.id) if len(there) >= ENOUGH else ())
    # At the start many mistakes look alike: one has to compute what the layer does far from it, too.
    asked = (check, CHECKS["forward.random_parameters"]) if check.id == "forward.at_init" else (check,)
    found = next((m for m in entries if all(_explains(c, context, m, there) for c in asked)), None)
    if found is None:
        return ()
    told = described(found, len(there), len(there))
    return (dataclasses.replace(told, summary=f"{where}, {told.summary}"),)


def _can_be(mistake: Mistake) -> bool:
    """Whether it is about the function alone: what has other tensors leaves some out of the comparison."""
    same_tensors = not any(part == "hidden" or part.startswith("role") for part in mistake.parts)
    return "output" in mistake.speaks_of and same_tensors and not mistake.agrees_with


def _neighbours(case: Case) -> list[Case]:
    """The case, the same sizes drawn anew, and larger ones: some of them are of the same regime."""
    sizes = {"in_features": case.in_features, "out_features": case.out_features}
    wider = [{name: size + more for name, size in sizes.items()} for more in (1, 3)]
    changes: list[dict[str, Any]] = [
        {},
        {"seed": case.seed + 1},
        *wider,
        {**wider[1], "rank": case.spec.rank + 2, "alpha": 5.0},
    ]
    return [case.but(**change) for change in changes]


def _explains(check: Check, context: Context, mistake: Mistake, cases: Sequence[Case]) -> bool:
    against = dataclasses.replace(context, oracle=mistaken(mistake.id), worst=Worst())
    return all(holds(check, against, case) for case in cases)


def _answers_as_its_base(context: Context, case: Case) -> bool:
    """Whether, far from its start, the layer's output is the base's."""
    with torch.no_grad():
        return is_the_bases(far_layer(context, case)(case.x), case)


def others(failing: Case) -> list[Case]:
    """The small cases, with what the failing one has beside its sizes."""
    dtype = "float32" if failing.dtype == "float64" else failing.dtype
    return [failing.but(**generic, dtype=dtype) for generic in GENERIC]


def fails(check: Check, context: Context, mistake: Mistake, case: Case) -> bool:
    """Whether the equation with that mistake alone fails the check at a case, against the same oracle."""
    return not _holds_with(check, context, (mistake,), case)


def _holds_with(check: Check, context: Context, mistakes: Set, case: Case) -> bool:
    """Whether the equation with these mistakes together passes the check at a case, against the same oracle."""
    return holds(check, _asking(context, mistaken(*(m.id for m in mistakes))), case)


def _asking(context: Context, subject: Implementation) -> Context:
    """The claim's question, put to another subject."""
    return dataclasses.replace(context, subject=subject, worst=Worst())


def holds(check: Check, context: Context, case: Case) -> bool:
    """Whether the check passes at one case; anything but a pass counts as not."""
    try:
        check.function(context, case)
    except Exception:
        return False
    return True


def described(mistake: Mistake, matched: int, tried: int) -> Diagnosis:
    """The catalogue's words on a mistake, and at how many of the cases tried it makes the check fail."""
    return Diagnosis(
        mistake.id,
        mistake.summary,
        mistake.failure_mode,
        matched,
        tried,
        mistake.agrees_with,
        mistake.documented,
        mistake.severity,
        source="catalogue",
        remedy=mistake.remedy,
        place=mistake.place,
    )

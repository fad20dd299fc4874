"""Which other defaults than PEFT's a library has, and what is asked of it all the same.

More layers nearly everywhere, the authors' own, or none at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator

from harness.cases.tiny_models import ARCHITECTURES, ModelCase, heads
from harness.compare.adapted_model import (
    AdaptedModel,
    Places,
    adapted_by,
    places_of,
    reference_places,
    subject_on,
)
from harness.compare.context import Context
from harness.compare.ear import heard
from harness.compare.layer import SubjectRaised
from harness.compare.outcome import ToldElsewhere
from oracles.disagreements import Disagreement, disagreements
from oracles.implementation import Unsupported
from reports.model import Diagnosis

SEVERAL = 3  # architectures with more layers: a rule of the library's own, and no slip in one line of a table
SAYS_SO = (r"(default|all).{0,80}(layers?|targets?|projections?|modules?|linear)",)
ADAPTS_MORE = Diagnosis(
    "targets.more",
    "by default more layers are adapted than PEFT adapts, on most architectures",
    "the same settings train a larger adapter than with PEFT, and the files of the two do not fit each other",
    agrees_with="the papers, which leave the choice of layers to who trains (LoRA, section 4.2)",
    documented_by=SAYS_SO,
    severity="minor",
    remedy="adapt by default what PEFT adapts",
)
# What is said aloud where targets name nothing, and where nothing is adapted, for whatever reason.
NOT_FOUND = r"target|match|\bno\b.{0,40}(module|layer)"
NOTHING_DONE = rf"{NOT_FOUND}|\b(none|not|nothing|0|unsupported|unknown|skip\w*)\b"
ADAPTS_NOTHING = Diagnosis(
    "targets.default_nothing",
    "on this architecture the defaults adapt nothing",
    "the model is the base: it has no adapter to train, where the same settings train one with PEFT",
    remedy="give this architecture default targets, or refuse it in a sentence where none are given",
)
SILENTLY = dataclasses.replace(ADAPTS_NOTHING, summary=f"{ADAPTS_NOTHING.summary}, and nothing says so")


MORE_HERE = Diagnosis(
    "targets.more_here",
    "by default more layers are adapted on this architecture than PEFT adapts",
    "the same settings train a larger adapter than with PEFT, and the files of the two do not fit each other",
    remedy="adapt by default what PEFT adapts",
)
SAYS_LITTLE = 3  # letters of a name that a docstring may have for other reasons


def by_choice(context: Context, case: ModelCase) -> Diagnosis | None:
    """What explains that other layers than PEFT's are adapted by default; None where it is not known which are."""
    mine = places_of(context.subject, case)
    if mine is not None and not mine.layers:
        said = heard(context.subject.name)
        aloud = any(re.search(NOTHING_DONE, words, re.IGNORECASE) for words in said)
        return ADAPTS_NOTHING if aloud else SILENTLY
    if adapts_more(context, case):
        return ADAPTS_MORE
    why = as_the_authors(context, case)
    if why:
        return _of_the_authors(why[0])
    if mine is None or not without_heads(mine.layers, case) > reference_places(context, case).layers:
        return None
    return _stated_by_names(mine.layers)


def _stated_by_names(layers: Iterable[str]) -> Diagnosis:
    """More than PEFT's: a choice where one sentence of the docstring names every one of them, as q_proj."""
    names = sorted({name.rpartition(".")[2] for name in layers})
    if min(map(len, names)) <= SAYS_LITTLE:
        return MORE_HERE
    every = "".join(rf"(?=.*\b{re.escape(name)}\b)" for name in names)
    return dataclasses.replace(MORE_HERE, documented_by=(every,))


def on_the_same_layers(context: Context, case: ModelCase) -> tuple[ModelCase, AdaptedModel]:
    """The subject on the layers that PEFT adapts, and that case: by default or, where that is others, by name.

    Raises ToldElsewhere where none of the lists of names selects the same layers with both.
    """
    ours, theirs = subject_on(context, case), reference_places(context, case)
    if ours.layers.keys() == theirs.layers:
        return case, ours
    for targets in _in_their_place(case, theirs):
        named = dataclasses.replace(case, targets=targets)
        wanted = places_of(context.oracle, named)
        with contextlib.suppress(SubjectRaised, Unsupported):
            ours = adapted_by(context.subject, named)
            if wanted is not None and ours.layers and ours.layers.keys() == wanted.layers:
                return named, ours
    raise ToldElsewhere("the subject adapts other layers than PEFT: see targets.default", "targets.default")


def _in_their_place(case: ModelCase, theirs: Places) -> list[tuple[str, ...]]:
    """What to ask for by name where the defaults differ: the layers of PEFT's, or a few of the attention's.

    Which side of a layer (IA)³ gates has no name: an attention's is gated at its output by everyone.
    """
    attention = (case.kind.pair[0].rpartition(".")[2],)
    if case.variant.side:
        return [attention]
    last_parts = tuple(sorted({name.rpartition(".")[2] for name in theirs.layers}))
    return [last_parts, attention, *case.kind.endings[:1]]


def odd_one(context: Context, case: ModelCase) -> ModelCase:
    """The case or, where its layers are the authors', the first architecture on which they are nobody's."""
    if not as_the_authors(context, case):
        return case
    unlike = (other for other, mine, theirs in _everywhere(context, case) if mine != theirs)
    return next((other for other in unlike if not as_the_authors(context, other)), case)


def adapts_more(context: Context, case: ModelCase) -> bool:
    """Whether several architectures have more layers than PEFT's and fewer lack one of them, heads not counted."""
    more = less = 0
    for other, mine, theirs in _everywhere(context, case):
        less += bool(theirs.layers - mine.layers)
        more += without_heads(mine.layers, other) > theirs.layers
    return more >= SEVERAL and more > less


def without_heads(layers: Iterable[str], case: ModelCase) -> frozenset[str]:
    """The adapted layers but for the output head and the embeddings, which have a check of their own."""
    return frozenset(layers) - heads(case.base()).keys()


def as_the_authors(context: Context, case: ModelCase) -> tuple[Disagreement, ...]:
    """The fewest catalogued disagreements by which PEFT's layers become the subject's; none where nothing does."""
    mine, theirs = places_of(context.subject, case), places_of(context.oracle, case)
    entries = [entry for entry in disagreements(context.variant.id) if entry.instead]
    if mine is None or theirs is None or not entries:
        return ()
    there = frozenset(name for name, _ in case.base().named_modules())
    some = (c for size in range(1, len(entries) + 1) for c in itertools.combinations(entries, size))
    return next((chosen for chosen in some if _by_authors(theirs.layers, chosen, there) == mine.layers), ())


def _by_authors(
    layers: frozenset[str], entries: tuple[Disagreement, ...], there: frozenset[str]
) -> frozenset[str]:
    """PEFT's layers with the authors' in the place of some; what the model has not is left out."""
    for ours, theirs in (entry.instead for entry in entries if entry.instead):
        moved = {name: name.removesuffix(ours) + theirs for name in layers if name.endswith(ours)}
        new = frozenset(name for name in moved.values() if theirs and name in there)
        layers = layers - moved.keys() | new
    return layers


def _everywhere(context: Context, case: ModelCase) -> Iterator[tuple[ModelCase, Places, Places]]:
    """Every architecture that both take by default, with the subject's layers and the reference's."""
    for architecture in ARCHITECTURES:
        other = dataclasses.replace(case, architecture=architecture)
        mine, theirs = places_of(context.subject, other), places_of(context.oracle, other)
        if mine is not None and theirs is not None:
            yield other, mine, theirs


def _of_the_authors(entry: Disagreement) -> Diagnosis:
    """What is said of a library that does as the authors do where PEFT does otherwise."""
    return Diagnosis(
        entry.id,
        f"the layers adapted by default are the authors', not PEFT's: {entry.what}",
        entry.meaning,
        agrees_with=" and ".join(name for name in entry.between if name != "PEFT"),
        documented_by=SAYS_SO,
        severity="minor",
        remedy="adapt by default what PEFT adapts",
    )

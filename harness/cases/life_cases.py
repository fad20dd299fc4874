"""Sequences of calls on one adapted layer: a case is the layer, the adapters that may be put on it, and the steps.

The steps are plain data, so that Hypothesis shrinks a failing sequence and a report prints it. What a sequence asks
for that makes no sense where it stands (to delete what is not there) is passed over when it is run, not avoided when
it is drawn: any part of a sequence is a sequence.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from harness.cases.layer_cases import Case
from oracles.implementation import AdapterSpec
from oracles.variants import Variant

Step = tuple[str, ...]  # the method's name, and the names of adapters that it is given
FIRST, SECOND, THIRD = "default", "b", "c"
NAMES = (FIRST, SECOND, THIRD)
ALIKE = f"{FIRST}_b"  # a name that has the first one's in it; an adapter with the first one's spec, and other values

ADD: tuple[Step, ...] = (("add_adapter", SECOND), ("add_adapter", THIRD))
SET: tuple[Step, ...] = tuple(
    ("set_adapters", *names) for count in range(4) for names in itertools.combinations(NAMES, count)
)
DELETE: tuple[Step, ...] = tuple(("delete_adapter", name) for name in NAMES)
MODES: tuple[Step, ...] = (("train",), ("eval",))
TRAIN: tuple[Step, ...] = (("training_step",),)
FOLD: tuple[Step, ...] = (("merge_in_place",), ("unmerge",))
MERGE: tuple[Step, ...] = (("merge",),)
FILES: tuple[Step, ...] = tuple(("save_and_load", name) for name in NAMES)
COPY: tuple[Step, ...] = (("deepcopy",),)
CAST: tuple[Step, ...] = (("cast",),)
ALPHAS = (3.5, 8.5, 0.5)  # no rank among them
MOST = 7  # steps in each of a sequence's three lists, which are half as long on average
# Specs that no library can build an adapter from; and calls with names that are not there, or are taken.
WRONGLY: dict[str, dict[str, Any]] = {
    "rank 0": {"rank": 0},
    "rank -1": {"rank": -1},
    "dropout 1.5": {"dropout": 1.5},
    "": {},
}
WRONG: tuple[Step, ...] = (
    ("wrongly", "set_adapters", "missing", ""),
    ("wrongly", "delete_adapter", "missing", ""),
    ("wrongly", "add_adapter", FIRST, ""),
    *(("wrongly", "add_adapter", THIRD, how) for how in WRONGLY if how),
)


@dataclass(frozen=True)
class LifeCase(Case):
    """One layer and what is done with it; ``spec`` is the first adapter's, ``others`` those of b and c."""

    others: tuple[AdapterSpec, ...] = ()
    steps: tuple[Step, ...] = ()

    def spec_of(self, name: str) -> AdapterSpec:
        """The spec of the adapter of that name."""
        return self.spec if name in (FIRST, ALIKE) else self.others[NAMES.index(name) - 1]

    def far_for(self, name: str) -> dict[str, Tensor]:
        """Values far from the start, others for each adapter, in float64."""
        place = (*NAMES, ALIKE).index(name)
        own = Case(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Case)})
        own = dataclasses.replace(own, spec=self.spec_of(name), seed=self.seed + 100_003 * place)
        return own.far(dict.fromkeys(t.name for t in self.variant.tensors))

    def beside(self, second: AdapterSpec) -> LifeCase:
        """The same case with another spec for b."""
        return dataclasses.replace(self, others=(second, *self.others[1:]))

    def calling(self, name: str, other: str) -> LifeCase:
        """The same case with one name in the place of another one."""
        steps = tuple(tuple(other if part == name else part for part in step) for step in self.steps)
        return dataclasses.replace(self, steps=steps)

    def describe(self) -> dict[str, Any]:
        """The layer's case, the second spec where it matters, and the sequence as calls."""
        told = super().describe()
        used = {name for step in self.steps for name in step[1:]}
        more = {
            name: f"rank {self.spec_of(name).rank}, alpha {self.spec_of(name).alpha:g}"
            for name in NAMES[1:]
            if name in used and self.variant.has_rank
        }
        return {**told, **more, "steps": " · ".join(map(called, self.steps)) or "none"}


def called(step: Step) -> str:
    """A step as a call: ``set_adapters(default, b)``."""
    name, *given = step if step[0] != "wrongly" else step[1:]
    return f"{name}({', '.join(filter(None, given))})"


def lives(
    *steps: tuple[Step, ...],
    begins: tuple[Step, ...] = (),
    about: tuple[tuple[Step, ...], ...] = ((),),
    ends: tuple[tuple[Step, ...], ...] = ((),),
    dtypes: tuple[str, ...] = ("float32", "float64"),
) -> Callable[[Variant], st.SearchStrategy[LifeCase]]:
    """Sequences of these steps after ``begins``, two of the phrases ``about`` in them, and one of ``ends`` last.

    A group of steps that is given twice is likelier.
    """
    alphabet = [step for group in steps for step in group]

    def strategy(variant: Variant) -> st.SearchStrategy[LifeCase]:
        some = st.lists(st.sampled_from(alphabet), max_size=MOST) if alphabet else st.just([])
        phrase = st.sampled_from(((), *about) if about[0] else about)
        drawn = st.tuples(some, phrase, some, st.sampled_from(about), some, st.sampled_from(ends)).map(
            lambda parts: begins + tuple(step for part in parts for step in part)
        )
        return layers(variant, dtypes, drawn)

    return strategy


@st.composite
def layers(
    draw: st.DrawFn, variant: Variant, dtypes: tuple[str, ...], steps: st.SearchStrategy[tuple[Step, ...]]
) -> LifeCase:
    """A small layer, never square, and three specs that differ in whatever the variant has."""
    in_features, out_features = draw(st.sampled_from(((4, 3), (3, 5), (6, 4), (4, 7))), label="in, out")
    ranks = [r for r in (2, 1, 3, 4) if offered_rank(variant, out_features, in_features, r)]
    sided = variant.side is not None and draw(st.sampled_from((False, False, True)), label="other side")
    specs = tuple(
        _spec(variant, draw(st.sampled_from(ranks)), alpha, sided, place)
        for place, alpha in enumerate(ALPHAS)
    )
    specs = (specs[0], *(variant.beside(specs[0], spec) for spec in specs[1:]))
    allowed = [d for d in dtypes if d not in variant.refuses_dtypes]
    return LifeCase(
        specs[0],
        in_features,
        out_features,
        draw(st.booleans()),
        (3,),
        draw(st.sampled_from(allowed)),
        draw(st.integers(0, 2**16)),
        others=specs[1:],
        steps=draw(steps),
    )


def _spec(variant: Variant, rank: int, alpha: float, sided: bool, place: int) -> AdapterSpec:
    """One of the three specs: its own value of each option that has several; all on one side of the layer."""
    spec = AdapterSpec(variant.id, rank, alpha)
    for option in variant.options:
        if option.values:
            spec = option.put(spec, option.values[place % len(option.values)])
    return variant.side.put(spec, sided) if variant.side else spec


def offered_rank(variant: Variant, out: int, in_: int, rank: int) -> bool:
    """Whether a right library takes this rank on those sizes."""
    spec = AdapterSpec(variant.id, rank)
    return variant.in_domain(out, in_, spec) and not variant.may_refuse(spec)

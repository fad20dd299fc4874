"""Known faults in the life of an adapter, each as a change of the model: what the layer would then compute.

Where the model with a fault switched on computes what the subject computes, the finding names the fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness.compare.life_model import Held, Lived, State, Weights, added, chained
from oracles.variants import VARIANTS
from reports.model import Diagnosis

Fault = Callable[[Lived, State], Iterator[Weights]]
FAULTS: list[tuple[Diagnosis, Fault]] = []
FOLDING = ("merge_in_place", "merge", "unmerge")
CATALOGUE: list[Diagnosis] = []  # every fault that has a name, here and in `harness/test_lifecycle.py`


def named(name: str, summary: str, failure_mode: str, remedy: str = "", **more: Any) -> Diagnosis:
    """An entry of the catalogue of faults in the life of an adapter."""
    entry = Diagnosis(f"lifecycle.{name}", summary, failure_mode, remedy=remedy, **more)
    CATALOGUE.append(entry)
    return entry


def fault(name: str, summary: str, failure_mode: str, remedy: str = "") -> Callable[[Fault], Fault]:
    """Register what the layer would compute with a fault in it."""
    return shown_by(named(name, summary, failure_mode, remedy))


def shown_by(told: Diagnosis) -> Callable[[Fault], Fault]:
    """Register what the layer would compute with a fault that has its name already."""

    def register(function: Fault) -> Fault:
        FAULTS.append((told, function))
        return function

    return register


UNMERGED_OTHERWISE = named(
    "unmerged_otherwise",
    "unmerging does not take out what merging folded in",
    "after an evaluation that merges, the model is another one",
    remedy="take out exactly what merging put in, in the same dtype, or keep the weight from before and put it back",
)

SWITCHED_MERGED = named(
    "switched_merged",
    "switched while it is merged, the layer computes neither what was folded in nor what is active then",
    "who switches or deletes adapters on a merged model goes on with a base weight that is neither one's",
    remedy="unmerge exactly before another adapter is made active, or refuse to switch a merged layer in a sentence",
)

# What a layer may have in all its life, of which its first claims tell.
OF_THE_FUNCTION = ("lifecycle.bias_lost", "lifecycle.bias_not_folded")


def explain(life: Lived, state: State, is_it: Callable[[Weights], bool]) -> Diagnosis | None:
    """The first fault whose output is the subject's."""
    for diagnosis, function in FAULTS:
        if any(is_it(weights) for weights in function(life, state)):
            return diagnosis
    return None


def _held(life: Lived, names: Sequence[str]) -> list[Held]:
    return [life.held[name] for name in names]


def _was_folded(life: Lived) -> bool:
    """Whether something was folded in that should not be any more."""
    return bool(life.folded) and (life.unsettled or not life.merged)


@fault(
    "deleted_acts",
    "an adapter that was deleted still acts",
    "the model goes on with an adapter that nobody can see, switch off or save any more",
)
def deleted_acts(life: Lived, state: State) -> Iterator[Weights]:
    for held in life.gone.values():
        yield state.composed(life.base, [held])
        yield state.composed(life.base, [*_held(life, state.active), held])


@fault(
    "still_folded",
    "an adapter that was folded in stays in the base weight",
    "the base weight is another one from then on, under whatever adapter comes next",
)
def still_folded(life: Lived, state: State) -> Iterator[Weights]:
    there = {**life.gone, **life.held}
    if _was_folded(life) and set(life.folded) <= there.keys():
        left = state.composed(life.base, [there[name] for name in life.folded])
        yield left
        yield state.composed(left, _held(life, state.active))


@fault(
    "unmerged_the_active",
    "unmerging takes out the adapter that is active instead of the one that was folded in",
    "the base weight keeps what was folded in and loses what never was",
)
def unmerged_the_active(life: Lived, state: State) -> Iterator[Weights]:
    """Of a method that adds, the active one's output hides it: then it is told as what stays in the weight."""
    there = {**life.gone, **life.held}
    if not (_was_folded(life) and state.active and set(life.folded) <= there.keys()):
        return
    W, b = state.composed(life.base, [there[name] for name in life.folded])
    taken, shift = state.composed(life.base, _held(life, state.active))
    before, at = life.base
    left = W - (taken - before), None if b is None or shift is None or at is None else b - (shift - at)
    yield state.composed(left, _held(life, state.active))


LOST_BY_UNMERGING = named(
    "lost_by_unmerging",
    "merging and unmerging loses the adapter: the base answers afterwards",
    "who merges for an evaluation, or merges and thinks better of it, has lost what was trained",
    remedy="keep the adapter's tensors while it is folded in, and let it act again when it is taken out",
)


@shown_by(LOST_BY_UNMERGING)
def lost_by_unmerging(life: Lived, state: State) -> Iterator[Weights]:
    if state.active and ("unmerge",) in life.taken:
        yield life.base


@fault(
    "nothing_acts",
    "the base answers although an adapter is active",
    "what was trained is switched off",
)
def nothing_acts(life: Lived, state: State) -> Iterator[Weights]:
    if state.active:
        yield life.base


@fault(
    "inactive_act",
    "an adapter that is not active still acts",
    "the output is that of adapters that were switched off",
)
def inactive_act(life: Lived, state: State) -> Iterator[Weights]:
    rest = [name for name in life.held if name not in state.active]
    for count in range(1, len(rest) + 1):
        for more in itertools.combinations(rest, count):
            names = [name for name in life.held if name in more or name in state.active]
            yield state.composed(life.base, _held(life, names))


@fault(
    "other_acts",
    "another adapter acts than the one that is active",
    "the output is that of adapters that were switched off",
)
def other_acts(life: Lived, state: State) -> Iterator[Weights]:
    for name in life.held:
        if name not in state.active:
            yield state.composed(life.base, [life.held[name]])


@fault(
    "some_folded",
    "of several active adapters merging folds only some in",
    "what is merged is not the model that the adapters were together before",
)
def some_folded(life: Lived, state: State) -> Iterator[Weights]:
    yield from some_act(life, state) if life.merged else ()


@fault(
    "some_act",
    "of several active adapters only some act",
    "adapters that were trained apart are not the model together that they should be",
)
def some_act(life: Lived, state: State) -> Iterator[Weights]:
    for count in range(1, len(state.active)):
        for names in itertools.combinations(state.active, count):
            yield state.composed(life.base, _held(life, names))


@fault(
    "reversed",
    "several active adapters are chained in reverse",
    "the chain of two trained adapters is not the one that the references compute",
)
def reversed_chain(life: Lived, state: State) -> Iterator[Weights]:
    if len(state.active) > 1:
        yield state.composed(life.base, _held(life, state.active)[::-1])


@fault(
    "norm_of_another",
    "the magnitude is divided by the norm that belongs to another adapter",
    "every row of the merged weight is too long or too short",
)
def norm_of_another(life: Lived, state: State) -> Iterator[Weights]:
    active, mixed = _held(life, state.active), VARIANTS[life.case.spec.variant].with_norms_of
    if mixed is None or not active:
        return
    for other in life.held.values():
        theirs = (other.values, other.spec)
        wrong = [Held(h.spec, mixed((h.values, h.spec), theirs, life.base[0])) for h in active]
        yield state.composed(life.base, wrong)
    yield chained(life.base, active)  # the norm of what the one before it left


@fault(
    "scale_of_another",
    "an adapter acts with the scale of another one",
    "its update is too large or too small by the ratio of the two scales",
)
def scale_of_another(life: Lived, state: State) -> Iterator[Weights]:
    for other in life.held.values():
        yield state.composed(life.base, [Held(other.spec, held.values) for held in _held(life, state.active)])


@fault(
    "composed_otherwise",
    "several active adapters act together in another way than in the references",
    "adapters that were trained apart are not the model together that they should be",
)
def composed_otherwise(life: Lived, state: State) -> Iterator[Weights]:
    if len(state.active) > 1:
        for other in (added, chained):
            yield other(life.base, _held(life, state.active))


@fault(
    "acts_while_folded",
    "while it is folded in, the adapter still acts, on top of the weight that holds it",
    "what is evaluated or deployed after merging in place has the update twice",
    "let the layer answer by its merged weight alone until it is unmerged",
)
def acts_while_folded(life: Lived, state: State) -> Iterator[Weights]:
    """Where merging in place once is all that was folded, and nothing was exported."""
    if [name for name, *_ in life.taken if name in FOLDING] == ["merge_in_place"]:
        yield from _twice(life, state)


@fault(
    "twice",
    "the adapter is folded in twice",
    "merging a model that is merged, or merging it again after unmerging, doubles the update",
)
def twice(life: Lived, state: State) -> Iterator[Weights]:
    if life.folded or not life.exported:
        yield from _twice(life, state)


@fault(
    "merged_beneath",
    "merging leaves the update in the adapted layer's own weight, and the adapter acts on top of it",
    "after one export the layer that is evaluated, trained or exported again has the update twice",
)
def merged_beneath(life: Lived, state: State) -> Iterator[Weights]:
    if life.exported and not life.folded:
        yield from _twice(life, state)


def _twice(life: Lived, state: State) -> Iterator[Weights]:
    names = state.active or life.folded
    if names and set(names) <= life.held.keys():
        once = state.composed(life.base, _held(life, names))
        yield state.composed(once, _held(life, names))
        b = None if once[1] is None or life.base[1] is None else 2 * once[1] - life.base[1]
        yield 2 * once[0] - life.base[0], b


@fault(
    "shared_residual",
    "what one adapter takes out of the base weight stays out while another is active",
    "adding an adapter changes what the others compute, and none of them gives the base back",
)
def shared_residual(life: Lived, state: State) -> Iterator[Weights]:
    lost = {name: life.case.weight.double() - W for name, left in life.left.items() for W in left.values()}
    idle = [name for name in lost if name not in state.active]
    for count in range(1, len(idle) + 1):
        for names in itertools.combinations(idle, count):
            W, b = state.composed(life.base, _held(life, state.active))
            yield W - sum(lost[name] for name in names), b


@fault(
    "bias_lost",
    "the bias is left out",
    "the layer's output is shifted; nothing shows on layers without a bias",
)
def bias_lost(life: Lived, state: State) -> Iterator[Weights]:
    W, b = state.composed(life.base, _held(life, state.active))
    if b is not None:
        yield W, None


@fault(
    "bias_not_folded",
    "the bias stays the base's",
    "on layers with a bias the folded layer is not the adapted one",
)
def bias_not_folded(life: Lived, state: State) -> Iterator[Weights]:
    W, b = state.composed(life.base, _held(life, state.active))
    if b is not None and life.base[1] is not None:
        yield W, life.base[1]

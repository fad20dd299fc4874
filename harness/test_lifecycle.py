"""The life of an adapter: several on one layer, switched, merged and unmerged, trained, saved, copied, in any order.

Every claim takes the layer through sequences of calls (`harness/cases/life_cases.py`) beside a float64 model of it
(`harness/compare/life_model.py`) and asks one thing after every step. What a subject does not offer is not asked.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from harness.cases import life_cases as steps
from harness.cases.layer_cases import Case, Domain
from harness.cases.life_cases import FIRST, SECOND, THIRD, LifeCase, lives
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.held_outside import passed_by
from harness.compare.layer import Layer, SubjectRaised, answering, as_layer, situation
from harness.compare.life import Done, Life, State, life
from harness.compare.life_faults import UNMERGED_OTHERWISE, named
from harness.compare.life_gradients import gradients_at
from harness.compare.life_kept import as_before, came_back
from harness.compare.offered import need, offers
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.compare.own_reading import of_the_library
from harness.compare.probing import effective, plain_layer
from harness.compare.thresholds import REST, ROUNDOFFS, THRESHOLDS
from harness.compare.unmerging import FOLDING, leaves_a_rest
from harness.engine.checks import check
from oracles.seeding import seed_torch
from reports.model import Diagnosis

SEVERAL = ("add_adapter", "set_adapters")
GIVEN = (("add_adapter", SECOND),)  # every sequence of several adapters begins with two
TOUCHING = ("add_adapter", "save_and_load", "delete_adapter")
READING = ("merge", "save_and_load", "deepcopy")
# The base is another one than the model of a life takes it for.
OTHER_BASE = ("forward.base_kept", "forward.eval_mode", "step0.base_frozen", "init.residual")
ROUNDS = 20  # of merging and unmerging
FOLDED, FRESH = ROUNDOFFS["folded layer"], ROUNDOFFS["fresh adapter"]


@check(
    "lifecycle",
    "critical",
    title="the output is not that of the active adapters",
    failure_mode="what is evaluated or deployed is another model than the one that was asked for",
    domain=Domain(
        strategy=lives(
            steps.ADD,
            steps.SET,
            steps.DELETE,
            steps.MODES,
            steps.TRAIN,
            begins=GIVEN,
            about=(
                (),
                (("eval",), ("set_adapters",)),
                (("set_adapters", FIRST, SECOND),),
                steps.DELETE[:1],
                (("add_adapter", THIRD), ("set_adapters", THIRD), *steps.DELETE[:1]),
            ),
        )
    ),
    against=("paper",),
    follows=("lifecycle.same_tensors", "forward.random_parameters", "forward.modes", *OTHER_BASE),
    diagnose=False,
)
def test_output(context: Context, case: LifeCase) -> None:
    """With several adapters, the output is that of those that are active, after any switch, deletion or step."""
    need(context.subject, case.spec, ("set_adapters",))
    with life(context, case) as layer:
        layer.judge("output at the start", layer.output())
        for done in layer.run():
            layer.judge(f"output {done.after}", layer.output())


@check(
    "lifecycle",
    "critical",
    title="what is merged does not compute what was adapted",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    domain=Domain(
        strategy=lives(
            steps.FOLD, steps.TRAIN, steps.SET, steps.ADD, steps.DELETE, steps.MODES,
            about=(
                (*steps.FOLD[:1], *steps.MERGE),
                steps.FOLD[:1],
                steps.MERGE,
                (*steps.FOLD[:1], *steps.MERGE),
                (*GIVEN, *steps.FOLD[:1], ("set_adapters", SECOND)),
                (*steps.FOLD[:1], ("set_adapters",)),
                (*GIVEN, ("set_adapters", SECOND), *steps.MERGE),
                (*GIVEN, ("set_adapters", FIRST, SECOND), *steps.FOLD[:1]),
                (*steps.FOLD, *steps.FOLD),
            ),
        )
    ),
    against=("paper",),
    follows=(
        "merge.weight",
        "merge.untouched",
        "lifecycle.output",
        "forward.random_parameters",
        "forward.modes",
        *OTHER_BASE,
    ),
    diagnose=False,
)  # fmt: skip
def test_merged(context: Context, case: LifeCase) -> None:
    """Merged, in place or not, once or again, with whichever adapters are active, it computes what it did before."""
    if not offers(context.subject, case.spec, "merge_in_place"):
        need(context.subject, case.spec, ("merge",))
    with life(context, case) as layer:
        for done in layer.run():
            if done.name == "merge" and not done.refused:
                plain = plain_layer(done.answer, "merge")
                layer.judge("output of the merged layer", layer.output(layer=plain), done.states, FOLDED)
            layer.judge(f"output {done.after}", layer.output(), roundoffs=FOLDED)


@check(
    "lifecycle",
    "critical",
    title="merging in place once more, what is merged already, folds the adapter in again or for good",
    failure_mode="a model that is merged by two callers, or in a loop, goes on as another one",
    domain=Domain(strategy=lives()),
    against=("paper",),
    examples=2,
    follows=("lifecycle.merged", "lifecycle.output", "forward.random_parameters", *OTHER_BASE),
    diagnose=False,
)
def test_merged_twice(context: Context, case: LifeCase) -> None:
    """Merged in place twice, where the second time is not refused, and unmerged, it computes what it did before."""
    need(context.subject, case.spec, FOLDING)
    with life(context, case) as layer:
        layer.take(("merge_in_place",))
        with layer.may_ask_to_be_unmerged():
            layer.context.calling("merge_in_place", context.subject.merge_in_place, layer.layer.adapted)
        layer.taken.append(("merge_in_place",))
        layer.judge("output after merging in place twice", layer.output(), roundoffs=FOLDED)
        layer.take(("unmerge",))
        layer.judge("output after merging in place twice and unmerging", layer.output(), roundoffs=FOLDED)


BY_SUBTRACTION = named(
    "unmerged_by_subtraction",
    "unmerging computes the base weight again from the merged one, which rounding keeps from being exact",
    "a base that was merged and unmerged is not bit for bit the base, and drifts with every round",
    agrees_with="PEFT, which subtracts (DoRA, (IA)³: divides out) what it added",
    documented_by=(
        r"unmerg\w*.{0,80}(subtract|divid|approximat|round|inexact|not exact|drift)",
        r"round(ed|ing)",
    ),
    severity="minor",
)


@check(
    "lifecycle",
    "major",
    title="unmerging does not take out what merging folded in",
    failure_mode="the base weight is another one after every evaluation that merges",
    domain=Domain(strategy=lives(steps.FOLD, steps.SET, steps.ADD, steps.TRAIN, about=(steps.FOLD,))),
    against=("paper",),
    follows=("lifecycle.merged", "lifecycle.output", "forward.random_parameters", *OTHER_BASE),
    diagnose=False,
)
def test_unmerge(context: Context, case: LifeCase) -> None:
    """Unmerged, the layer answers bit for bit as before it was merged, and with no adapter active as the base does."""
    need(context.subject, case.spec, FOLDING)
    with life(context, case, ("merge_in_place",)) as layer:
        before = layer.output()
        for done in layer.run():
            if done.name == "merge_in_place":
                before = done.output
            elif done.name == "unmerge":
                same_bits(layer, "output after unmerging", layer.output(), before)
            if layer.active == () and not layer.merged:
                same_bits(layer, f"output {done.after}", layer.output(), _plain_output(case))


def _plain_output(case: Case) -> Tensor:
    with torch.no_grad():
        return case.base()(case.x).double()


def same_bits(layer: Life, quantity: str, actual: Tensor, expected: Tensor) -> None:
    """Raise Deviation unless two outputs are equal bit for bit; a difference of rounding has its name."""
    if torch.equal(actual, expected):
        return
    gap = float((actual - expected).abs().max())
    ratio = rounding.ratio(actual, expected, FOLDED * max(layer.floor(s) for s in layer.states))
    rounded = ratio <= THRESHOLDS["formula"]
    raise Deviation(
        layer.case, quantity, "bit for bit as before", f"up to {gap:.3g} away", ratio=ratio, threshold=0.0,
        diagnosis=BY_SUBTRACTION if rounded else layer.of_unmerging(), alone=rounded,
    )  # fmt: skip


@check(
    "lifecycle",
    "major",
    title="the base weight drifts while adapters are merged and unmerged",
    failure_mode="a service that merges for every request serves another base after a day",
    domain=Domain(strategy=lives(dtypes=("bfloat16",))),
    against=("paper",),
    examples=4,
    follows=(
        "lifecycle.merged",
        "merge.half",
        "dtype.output",
        "forward.random_parameters",
        *OTHER_BASE,
    ),
    diagnose=False,
)
def test_drift(context: Context, case: LifeCase) -> None:
    """Over a bf16 base, merging and unmerging many times moves the effective weight no further than two roundings."""
    need(context.subject, case.spec, FOLDING)
    with life(context, case) as layer:
        before = _effective_weights(layer)
        with situation("after merge_in_place() and unmerge()"):
            _round(layer)
            rounded = _drift(layer, before) <= THRESHOLDS["drift"]
            for _ in range(ROUNDS - 1):
                _round(layer)
            ratio = _drift(layer, before)
        context.worst.see(ratio, THRESHOLDS["drift"])
        if ratio > THRESHOLDS["drift"]:
            rest = UNMERGED_OTHERWISE if not rounded and leaves_a_rest(context, case) else None
            raise Deviation(
                dataclasses.replace(case, steps=steps.FOLD),
                f"weights after {ROUNDS} rounds of merging and unmerging",
                "as before",
                f"{ratio:.3g} roundoffs of them away",
                ratio=ratio,
                threshold=THRESHOLDS["drift"],
                diagnosis=BY_SUBTRACTION if rounded else rest,
            )


def _round(layer: Life) -> None:
    for method in FOLDING:
        layer.context.calling(method, getattr(layer.context.subject, method), layer.layer.adapted)
        layer.taken.append((method,))


def _effective_weights(layer: Life) -> list[Tensor]:
    """What the layer computes: W' and b' as they are adapted and, where adapters can be switched off, the base's."""
    subject, case = layer.context.subject, layer.case
    found = [*effective(layer.layer, case)]
    if offers(subject, case.spec, "set_adapters"):
        for names in ((), (FIRST,)):
            layer.context.calling("set_adapters", subject.set_adapters, layer.layer.adapted, names)
            found += effective(layer.layer, case) if not names else ()
    return found


def _drift(layer: Life, before: list[Tensor]) -> float:
    """How far the weights have moved, in roundoffs of the base weight and the adapted one together."""
    unit = rounding.roundoff(layer.case.torch_dtype)
    size = unit * float(before[0].norm() + before[1].norm() + layer.case.weight.double().norm())
    now = _effective_weights(layer)
    return max(rounding.ratio(actual, exact, size) for actual, exact in zip(now, before, strict=True))


@check(
    "lifecycle",
    "major",
    title="detaching does not give back the base once the adapters have been used",
    failure_mode="the base model is damaged by what was done with its adapters",
    domain=Domain(
        strategy=lives(
            steps.ADD,
            steps.SET,
            steps.DELETE,
            steps.FOLD,
            steps.MERGE,
            steps.MODES,
            steps.TRAIN,
            ends=((), *2 * (((("set_adapters", FIRST), *steps.FOLD[:1])),), steps.FOLD[:1]),
        )
    ),
    against=("paper",),
    follows=("merge.detach", "merge.weight", "forward.random_parameters", *OTHER_BASE),
    diagnose=False,
)
def test_detach(context: Context, case: LifeCase) -> None:
    """Whatever was done before, merged or not, detach gives weight and bias bit for bit as they were."""
    need(context.subject, case.spec, ("detach",))
    with life(context, case) as layer:
        for _ in layer.run():
            pass
        with layer.may_ask_to_be_unmerged():
            held = context.calling("detach", context.subject.detach, layer.layer.adapted)
            base = plain_layer(held, "detach")
            _is_base(layer, "the weight after detach", base.weight, case.weight)
            if case.bias_vector is not None:
                bias = base.bias if base.bias is not None else torch.zeros(0)
                _is_base(layer, "the bias after detach", bias, case.bias_vector)


DETACH_MERGED = named(
    "detach_merged",
    "detaching a merged layer leaves the adapter in the weight",
    "the base model that is handed back is the merged one",
)


def _is_base(layer: Life, quantity: str, actual: Tensor, expected: Tensor) -> None:
    if torch.equal(actual.detach(), expected):
        return
    if actual.shape != expected.shape:
        raise Deviation(
            layer.case, quantity, f"shape {tuple(expected.shape)}", f"shape {tuple(actual.shape)}"
        )
    gap = (actual.detach() - expected).double()
    unit = FOLDED * THRESHOLDS["formula"] * rounding.roundoff(expected.dtype)
    rounded = float(gap.norm()) <= unit * float(expected.double().norm())
    diagnosis = BY_SUBTRACTION if rounded else _what_stays(layer, gap)
    raise Deviation(
        layer.case,
        quantity,
        "bit for bit the base's",
        f"up to {float(gap.abs().max()):.3g} away",
        diagnosis=diagnosis,
        alone=diagnosis is DETACH_MERGED and _detaches_unmerged(layer),
    )


def _detaches_unmerged(layer: Life) -> bool:
    """Whether the adapter, with the same values and never merged, is detached without a trace."""
    context, case = layer.context, layer.case
    twin = context.layer(case)
    twin.write(case.far_for(FIRST))
    base = plain_layer(context.calling("detach", context.subject.detach, twin.adapted), "detach")
    return torch.equal(base.weight.detach(), case.weight)


def _what_stays(layer: Life, gap: Tensor) -> Diagnosis | None:
    """What a detached layer keeps: what unmerging always leaves, or of a merged one the adapter itself."""
    if layer.folded and gap.dim() == 2:
        change = layer.weights(layer.states[0])[0] - layer.base[0]
        if float(gap.norm()) < REST * float(change.norm()) and (rest := layer.of_unmerging()):
            return rest
    return DETACH_MERGED if layer.merged else None


@check(
    "lifecycle",
    "critical",
    title="adapters that are not active are trained, or active ones are not",
    failure_mode="training one adapter changes another, or nothing at all",
    domain=Domain(
        strategy=lives(steps.SET, steps.TRAIN, steps.MODES, steps.ADD, begins=GIVEN, about=(steps.TRAIN,))
    ),
    against=("paper",),
    follows=(
        "lifecycle.same_tensors",
        "training.alive",
        "step0.dead_parameters",
        "lifecycle.output",
        "forward.gradients",
    ),
    diagnose=False,
)
def test_inactive(context: Context, case: LifeCase) -> None:
    """A training step moves the adapters that are active; those that are not get no gradient and keep every bit."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case, ("training_step",)) as layer:
        for done in layer.run():
            layer.judge(f"output {done.after}", layer.output())
            if done.name == "training_step":
                _only_active_moved(layer, done)


def _only_active_moved(layer: Life, done: Done) -> None:
    now, active = layer.values(), layer.states[0].active
    demand = layer.context.demand
    for name, gradients in done.gradients.items():
        moved = [n for n, v in done.values[name].items() if not rounding.same_values(v, now[name][n])]
        if name in active:
            what = f"tensors of {name} after a step"
            with passed_by(layer.handles[name], layer.case.x):
                demand(bool(moved), layer.case, what, "moved: it is active", "as before")
            continue
        found = [n for n, g in gradients.items() if bool(g.abs().max() > 0)]
        demand(not found, layer.case, f"gradients of {name}", "none: it is not active", ", ".join(found))
        demand(not moved, layer.case, f"tensors of {name} after a step", "as before: it is not active",
               f"changed: {', '.join(moved)}")  # fmt: skip


@check(
    "lifecycle",
    "critical",
    title="with several active adapters the gradients are not those of what is computed",
    failure_mode="adapters that are trained together do not descend the loss",
    domain=Domain(
        strategy=lives(
            steps.TRAIN, steps.SET[4:], begins=(*GIVEN, ("set_adapters", FIRST, SECOND)), about=(steps.TRAIN,)
        )
    ),
    against=("paper",),
    follows=(
        "lifecycle.same_tensors",
        "forward.gradients",
        "lifecycle.output",
        "lifecycle.inactive",
        "step0.gradients",
    ),
    diagnose=False,
)
def test_gradients(context: Context, case: LifeCase) -> None:
    """With several active, each adapter's gradient is that of their common output by its tensors."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case) as layer:
        for done in layer.run():
            if done.name == "training_step":
                _gradients_of_the_model(layer, done)
            layer.judge(f"output {done.after}", layer.output())


def _gradients_of_the_model(layer: Life, done: Done) -> None:
    exact, noise = gradients_at(layer, done.states[0], done.held)
    for (name, tensor), gradient in exact.items():
        if tensor in done.gradients[name]:
            quantity = f"gradient of {name}'s {tensor}"
            layer.context.judge(
                layer.case, quantity, done.gradients[name][tensor], gradient, noise[name, tensor]
            )


@check(
    "lifecycle",
    "critical",
    title="adding or loading an adapter changes the others",
    failure_mode="an adapter that was trained is lost, or acts otherwise, once another one is there",
    domain=Domain(strategy=lives(steps.ADD, steps.SET, steps.FILES, steps.DELETE, steps.FOLD, begins=GIVEN)),
    against=("paper",),
    follows=("lifecycle.output", "lifecycle.same_tensors", "lifecycle.merged", "merge.weight", *OTHER_BASE),
    diagnose=False,
)
def test_others(context: Context, case: LifeCase) -> None:
    """Adding, loading or deleting one adapter leaves every tensor of the others, and the active ones' output."""
    need(context.subject, case.spec, ("add_adapter",))
    with life(context, case, TOUCHING) as layer:
        for done in layer.run():
            if done.name in TOUCHING:
                _others_untouched(layer, done)
            layer.judge(f"output {done.after}", layer.output(), roundoffs=FOLDED)


WIPED = named(
    "wiped",
    "adding an adapter gives the tensors of another one new values",
    "what was trained is lost once a second adapter is there",
)


def _others_untouched(layer: Life, done: Done) -> None:
    now, own = layer.values(), done.step[1]
    for name in done.values.keys() & now.keys() - ({own} if done.name == "delete_adapter" else set()):
        for tensor, value in done.values[name].items():
            if not rounding.same_values(value, now[name][tensor]):
                raise Deviation(
                    layer.case, f"{name}'s {tensor} {done.after}", "bit for bit as before", "other values",
                    diagnosis=WIPED if done.name == "add_adapter" else None,
                )  # fmt: skip


@check(
    "lifecycle",
    "major",
    title="an adapter that is added later does not start as the first one does",
    failure_mode="the second adapter begins from another function than the base model",
    domain=Domain(
        strategy=lives(
            steps.SET, steps.FOLD, steps.TRAIN, steps.MODES, ends=((), steps.FOLD[:1], steps.FOLD[:1])
        )
    ),
    against=("paper",),
    follows=(
        "init.deterministic",
        "init.pairs",
        "init.identity",
        "lifecycle.output",
        "lifecycle.merged",
        *OTHER_BASE,
    ),
    diagnose=False,
)
def test_start(context: Context, case: LifeCase) -> None:
    """Added in whatever state, merged too, an adapter starts where a first one does: at the base, norms of the base."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case) as layer:
        for _ in layer.run():
            pass
        with layer.may_ask_to_be_unmerged():
            _new_one_starts(layer)


def _new_one_starts(layer: Life) -> None:
    """Add an adapter to the layer as it is, and judge its tensors and its output."""
    context, case = layer.context, layer.case
    _starts_as_recorded(layer, _added(layer))
    if case.variant.starts_at_identity(case.spec_of(SECOND)):
        context.calling("set_adapters", context.subject.set_adapters, layer.layer.adapted, (SECOND,))
        layer.judge("output with the new adapter alone, at its start", layer.output(), [_nobody(layer)],
                    FRESH)  # fmt: skip


def _nobody(layer: Life) -> State:
    return State((), layer.states[0].composed)


def _added(layer: Life) -> Layer:
    subject, case = layer.context.subject, layer.case
    seed_torch(case.seed + 1)
    found = layer.context.calling(
        "add_adapter", subject.add_adapter, layer.layer.adapted, SECOND, case.spec_of(SECOND)
    )
    return as_layer(found, subject, "add_adapter")


NORMS_OF_MERGED = named(
    "norms_of_the_merged_weight",
    "an adapter that is added while another is merged takes its norms from the merged weight",
    "once the other is unmerged, the new adapter is scaled by norms that belong to no weight of the model",
)


def _starts_as_recorded(layer: Life, added: Layer) -> None:
    spec = layer.case.spec_of(SECOND)
    for tensor in layer.case.variant.tensors:
        if tensor.exact is None or tensor.name not in added.names:
            continue
        wanted, actual = tensor.exact(layer.case.weight.double(), spec), added.value(tensor.name)
        unit = FRESH * rounding.roundoff(rounding.coarser(layer.case.torch_dtype))
        ratio = rounding.ratio(actual, wanted, unit * float(wanted.norm()))
        layer.context.worst.see(ratio, THRESHOLDS["formula"])
        if ratio > THRESHOLDS["formula"]:
            merged = layer.merged and tensor.name in ("m", "w_norm")
            raise Deviation(
                layer.case, f"initial {tensor.name} of an added adapter", "that of a first one", "other values",
                ratio=ratio, threshold=THRESHOLDS["formula"], diagnosis=NORMS_OF_MERGED if merged else None,
            )  # fmt: skip


@check(
    "lifecycle",
    "major",
    title="what is saved depends on the state in which it is saved",
    failure_mode="a checkpoint that was written at the wrong moment is another adapter, or none",
    domain=Domain(
        strategy=lives(
            steps.FILES,
            steps.SET,
            steps.FOLD,
            steps.ADD,
            steps.MODES,
            steps.TRAIN,
            about=((), (*GIVEN, ("save_and_load", SECOND)), (*steps.FOLD[:1], ("save_and_load", FIRST))),
        )
    ),
    against=("paper",),
    follows=(
        "save_load.round_trip",
        "save_load.modes",
        "lifecycle.output",
        "lifecycle.others",
        "forward.random_parameters",
        *OTHER_BASE,
    ),
    diagnose=False,
)
def test_saved(context: Context, case: LifeCase) -> None:
    """In training or evaluation, merged or not, active or not: what is saved and loaded is that adapter."""
    need(context.subject, case.spec, ("save", "load"))
    _comes_back_at_once(context, case)
    with life(context, case) as layer:
        for done in layer.run():
            if done.name == "save_and_load" and not done.refused:
                with of_the_library(context.subject):
                    came_back(layer, done)
        last = layer.take(("save_and_load", FIRST))
        if last is not None and not last.refused:
            with of_the_library(context.subject):
                came_back(layer, last)


def _comes_back_at_once(context: Context, case: LifeCase) -> None:
    """Raises ToldElsewhere where a file is another adapter whatever was done before: it depends on no state."""
    with life(context, case) as layer:
        done = layer.take(("save_and_load", FIRST))
        try:
            if done is not None:
                came_back(layer, done)
        except Deviation as found:
            if found.diagnosis is not None:
                raise
            why = "saved at once, an adapter does not come back as it was, either"
            raise ToldElsewhere(why, "save_load.round_trip") from None


@check(
    "lifecycle",
    "major",
    title="merging, saving or copying changes the adapted layer",
    failure_mode="training that goes on after an evaluation or a checkpoint goes on from another state",
    domain=Domain(
        strategy=lives(
            steps.MODES,
            steps.TRAIN,
            steps.SET,
            steps.ADD,
            steps.FOLD,
            about=(steps.MERGE, (("save_and_load", FIRST),), steps.COPY),
        )
    ),
    against=("paper",),
    follows=("lifecycle.merged", "lifecycle.output", "forward.random_parameters", *OTHER_BASE),
    diagnose=False,
)
def test_kept(context: Context, case: LifeCase) -> None:
    """merge, save and a deep copy leave the adapted layer as it was: every tensor, the output, what is trained."""
    with life(context, case, READING) as layer:
        for done in layer.run():
            if done.name in READING:
                as_before(layer, done)


@check(
    "lifecycle",
    "major",
    title="a deep copy or a cast of the adapted layer does not compute what the layer does",
    failure_mode="an averaged, frozen or converted copy of the model is another model, or changes with it",
    domain=Domain(
        strategy=lives(
            steps.COPY,
            steps.CAST,
            steps.TRAIN,
            steps.SET,
            steps.FOLD,
            steps.ADD,
            about=(steps.COPY, steps.CAST, (*steps.COPY, *steps.TRAIN)),
        )
    ),
    against=("paper",),
    follows=(
        "contexts.deepcopy",
        "lifecycle.output",
        "forward.random_parameters",
        "lifecycle.merged",
        *OTHER_BASE,
    ),
    diagnose=False,
)
def test_copies(context: Context, case: LifeCase) -> None:
    """A deep copy answers as the layer did, whatever the layer does later; in float64 the layer computes the same."""
    copies: list[Copy] = []
    with life(context, case, ("cast",)) as layer:
        for done in layer.run():
            if done.name == "deepcopy":
                copies += _copied(layer, done)
            elif done.name == "cast" and not layer.ended:
                _is_its_own(layer, "output in float64", layer.output(), done.output)
        for each in copies:
            _stays(layer, each)


Copy = tuple[Layer, Tensor, torch.dtype]  # what it answered when it was made, and of which dtype it was


def _copied(layer: Life, done: Done) -> list[Copy]:
    """The copy, which answers as the layer did; none where a layer cannot be copied at all."""
    if done.refused:
        if _can_be_copied(layer.context.layer(layer.case)):
            wanted = "a copy, as of a fresh layer"
            raise Deviation(layer.case, "a deep copy", wanted, done.answer, diagnosis=COPIED_NO_MORE)
        return []
    output = layer.output(layer=done.answer)
    _is_its_own(layer, "output of a deep copy", output, layer.output())
    return [(done.answer, output, layer.dtype)]


def _stays(layer: Life, copy_: Copy) -> None:
    """Whatever the layer has done since, its copy answers as it did."""
    copied, before, dtype = copy_
    with torch.no_grad(), answering(layer.layer.who, "module(x) of a deep copy"):
        after = copied(layer.case.x.to(dtype)).double()
    same = rounding.same_values(after, before)
    layer.context.demand(same, layer.case, "output of a deep copy, later", "as it was", "another")


COPIED_NO_MORE = named(
    "copied_no_more",
    "a fresh layer can be copied deeply, and one that has been used cannot",
    "whoever keeps the best state of a training by copying the model gets an exception in the middle of it",
    remedy="keep no tensor that is part of a graph as an attribute: detach what is kept from one call to the next",
)


def _can_be_copied(layer: Layer) -> bool:
    """Whether a fresh layer can be copied; one that cannot says so from the start."""
    try:
        copy.deepcopy(layer.module)
    except Exception:
        return False
    return True


def _is_its_own(layer: Life, quantity: str, actual: Tensor, own: Tensor) -> None:
    """Raise Deviation unless it is what the layer itself answers, right or wrong, or what it should."""
    near = rounding.ratio(actual, own, FOLDED * max(layer.floor(s) for s in layer.states))
    if near > THRESHOLDS["formula"]:
        layer.judge(quantity, actual, roundoffs=FOLDED)


HALF_ADDED = named(
    "half_added",
    "an adapter whose adding failed is partly there",
    "who catches the exception cannot use the name again, or goes on with half an adapter",
)


@check(
    "lifecycle",
    "major",
    title="a call that fails leaves the layer changed",
    failure_mode="who catches the exception goes on with another model",
    domain=Domain(
        strategy=lives(
            steps.WRONG,
            steps.SET,
            steps.ADD,
            steps.FOLD,
            steps.TRAIN,
            about=tuple((step,) for step in steps.WRONG),
        )
    ),
    against=("paper",),
    follows=("lifecycle.output", "lifecycle.others", "lifecycle.merged", *OTHER_BASE),
    diagnose=False,
)
def test_refusal(context: Context, case: LifeCase) -> None:
    """A call that raises leaves output, tensors and what is trained as they were, and the same call, righted, works."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case, ("wrongly",)) as layer:
        for done in layer.run():
            if done.name == "wrongly" and done.refused:
                _as_before_the_failure(layer, done)
                if done.step[1] == "add_adapter":
                    _can_be_added(layer, done)


FAILED_SWITCH = named(
    "failed_switch",
    "switching to a name that is not there fails, and leaves other adapters active than before",
    "who catches the exception goes on with another model, the base alone for one",
    "look the names up before anything is switched",
)


def _as_before_the_failure(layer: Life, done: Done) -> None:
    try:
        as_before(layer, done)
    except Deviation as found:
        if done.step[1] == "set_adapters":
            found.diagnosis = FAILED_SWITCH
        raise


def _can_be_added(layer: Life, done: Done) -> None:
    """After an adding that failed, the name is free and one of that name, added rightly, acts."""
    name = done.step[2]
    if name in layer.handles or layer.merged:
        return
    try:
        layer.take(("add_adapter", name))
        layer.take(("set_adapters", name))
        layer.judge(f"output of {name} alone, added after a failure", layer.output())
    except (SubjectRaised, Deviation) as error:
        diagnosis = getattr(error, "diagnosis", None) or HALF_ADDED
        raise Deviation(
            layer.case,
            f"adding {name} after an adding that failed",
            "an adapter",
            str(error),
            diagnosis=diagnosis,
        ) from None

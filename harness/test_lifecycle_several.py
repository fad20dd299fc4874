"""Several adapters on one layer keep apart: their names, their ranks, their files, and what is trained of them.

Fixed sequences, each a few calls: what random ones (`harness/test_lifecycle.py`) meet by chance only.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from harness.cases.layer_cases import Domain
from harness.cases.life_cases import ALIKE, FIRST, SECOND, LifeCase, Step, lives, offered_rank
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.layer import SubjectRaised
from harness.compare.life import Done, Life, life
from harness.compare.life_faults import named
from harness.compare.life_kept import as_before, came_back, listed
from harness.compare.offered import need
from harness.compare.outcome import Deviation, ToldElsewhere
from harness.compare.saved_files import stored
from harness.compare.thresholds import ROUNDOFFS
from harness.engine.checks import check

SEVERAL = ("add_adapter", "set_adapters")
TWO: tuple[Step, ...] = (("add_adapter", SECOND),)
FOLD: Step = ("merge_in_place",)
FOLDED = ROUNDOFFS["folded layer"]
FEW = 3  # cases: the sequences hardly vary
WEIGHT_DECAY, LEARNING_RATE = 0.1, 1e-3


def _deleting(name: str) -> tuple[Step, ...]:
    """Fold in what is active, take one adapter off, and go on with those that are left."""
    left = SECOND if name == FIRST else FIRST
    return FOLD, ("delete_adapter", name), ("set_adapters", left)


@check(
    "lifecycle",
    "critical",
    title="an adapter that is deleted while it is merged is not gone",
    failure_mode="the base weight keeps an adapter that nobody can see, switch off or unmerge any more",
    domain=Domain(
        strategy=lives(
            begins=TWO,
            about=(
                _deleting(FIRST),
                (("set_adapters", FIRST, SECOND), *_deleting(FIRST)),
                (("set_adapters", FIRST, SECOND), *_deleting(SECOND)),
                (("set_adapters", SECOND), *_deleting(SECOND)),
                _deleting(SECOND),
            ),
        )
    ),
    against=("paper",),
    examples=2 * FEW,
    whole=True,
    follows=("lifecycle.merged", "lifecycle.output", "forward.random_parameters", "forward.base_kept"),
    diagnose=False,
)
def test_deleted_merged(context: Context, case: LifeCase) -> None:
    """Deleted while merged, an adapter acts no more, then and later; or that is refused, and nothing has changed."""
    need(context.subject, case.spec, (*SEVERAL, "delete_adapter", "merge_in_place", "unmerge"))
    with life(context, case, ("delete_adapter",)) as layer:
        for done in layer.run():
            if done.name == "delete_adapter" and done.refused:
                as_before(layer, done)
            else:
                layer.judge(f"output {done.after}", layer.output(), roundoffs=FOLDED)


LEFT_BEHIND = named(
    "deleted_left",
    "an adapter that is deleted leaves tensors of its own in the layer",
    "memory is not given back, the state dict holds what nobody asked for, and what walks through the adapters by "
    "their tensors meets one that is gone",
    "take every tensor of the adapter out of the layer when it is deleted",
)


@check(
    "lifecycle",
    "major",
    title="an adapter that is deleted leaves tensors of its own in the layer",
    failure_mode="memory is not given back, and the state dict holds what nobody asked for",
    domain=Domain(strategy=lives(begins=(*TWO, ("delete_adapter", SECOND)))),
    against=("paper",),
    examples=1,
    follows=("lifecycle.deleted_merged",),
    diagnose=False,
)
def test_deleted(context: Context, case: LifeCase) -> None:
    """Once an adapter is deleted, the layer has the parameters and the state dict of before it was added."""
    need(context.subject, case.spec, (*SEVERAL, "delete_adapter"))
    with life(context, case) as layer:
        before = _held_by(layer)
        taken = [done.name for done in layer.run() if not done.refused]
        left = sorted(_held_by(layer) - before)
        if taken == ["add_adapter", "delete_adapter"] and left:
            raise Deviation(
                case, "tensors beside those of before", "none", ", ".join(left[:FEW]), diagnosis=LEFT_BEHIND
            )


def _held_by(layer: Life) -> set[str]:
    """The names of the layer's parameters and of what its state dict holds."""
    held = layer.context.calling("state_dict", layer.module.state_dict)
    return {*held, *(name for name, _ in layer.module.named_parameters())}


NAME_TAKEN = named(
    "name_taken",
    "an adapter that is added under a name that is taken takes the place of the one that has it",
    "what was trained is lost without a word where a name is used twice",
    "refuse a name that is taken",
    documented_by=(r"(overwrit|replac|re-?initialis|re-?initializ|reset)\w*\W.{0,60}(name|adapter|exist)",),
)


@check(
    "lifecycle",
    "major",
    title="adding an adapter under a name that is taken changes the layer",
    failure_mode="what was trained is lost without a word where a name is used twice",
    domain=Domain(
        strategy=lives(
            begins=TWO,
            about=(
                (("wrongly", "add_adapter", FIRST, ""),),
                (("set_adapters", SECOND), ("wrongly", "add_adapter", FIRST, "")),
                (("wrongly", "add_adapter", SECOND, ""),),
            ),
        )
    ),
    against=("paper",),
    examples=FEW,
    follows=("lifecycle.output", "lifecycle.others"),
    diagnose=False,
)
def test_taken_name(context: Context, case: LifeCase) -> None:
    """Adding an adapter under a name that is taken is refused, or leaves every adapter and the output as they were."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case, ("wrongly",)) as layer:
        for done in layer.run():
            if done.name == "wrongly":
                _nothing_replaced(layer, done)


def _nothing_replaced(layer: Life, done: Done) -> None:
    try:
        as_before(layer, done)
        for name in () if done.refused else list(layer.handles):
            layer.take(("set_adapters", name))
            layer.judge(f"output of {name} alone {done.after}", layer.output())
    except Deviation as found:
        found.diagnosis = None if done.refused else NAME_TAKEN
        raise


DROPPED = named(
    "dropped",
    "a call puts new tensors in the place of those that an adapter was handed out with",
    "an optimiser that was made before goes on with tensors that nothing reads any more: training has no effect",
    "write into the tensors that are there; make no new parameters when adapters are switched, folded in or taken out",
)


@check(
    "lifecycle",
    "critical",
    title="the tensors that an adapter was handed out with are not the layer's any more",
    failure_mode="an optimiser that was made before goes on with tensors that nothing reads any more",
    domain=Domain(
        strategy=lives(
            begins=TWO,
            about=(
                (("set_adapters", SECOND), ("set_adapters", FIRST)),
                (FOLD, ("unmerge",)),
                (("set_adapters", FIRST, SECOND), ("eval",), ("train",)),
                (("set_adapters",), ("set_adapters", FIRST)),
            ),
        )
    ),
    against=("paper",),
    examples=2 * FEW,
    whole=True,
    diagnose=False,
)
def test_same_tensors(context: Context, case: LifeCase) -> None:
    """Switched, folded in and taken out, a layer trains the parameters that it had when its adapters were made.

    While an adapter is not active its parameters may be elsewhere: what counts is that they are back when it is.
    """
    need(context.subject, case.spec, SEVERAL)
    with life(context, case) as layer:
        made: dict[tuple[str, str], Tensor] = {}
        for done in layer.run():
            there = {id(p) for p in layer.module.parameters()}
            gone = [key for key, p in made.items() if key[0] in layer.active and id(p) not in there]
            if gone:
                quantity = f"parameters of the layer {done.after}, of those that were handed out"
                raise Deviation(case, quantity, "all of them", f"without {listed(gone)}", diagnosis=DROPPED)
            slots = {
                (name, t): h.raw(t)
                for name, h in layer.handles.items()
                for t in h.names
                if (told := case.variant.tensor(t)) is not None and told.role == "parameter"
            }
            made |= {key: p for key, p in slots.items() if id(p) in there}


TRAINABLE = named(
    "inactive_trainable",
    "adapters that are not active are trainable",
    "an optimiser over what wants a gradient is given them, too: its weight decay moves them wherever their gradients "
    "come as zeros, and where none comes at all DistributedDataParallel waits for it",
    "clear requires_grad of the adapters that are not active, and set it of those that are",
    documented_by=(
        r"(inactive|not active|other)\W.{0,80}(trainable|requires_grad|gradient)",
        r"(requires_grad|trainable)\W.{0,80}(inactive|not active|every adapter|all adapters)",
    ),
)


@check(
    "lifecycle",
    "major",
    title="adapters that are not active are trainable",
    failure_mode="an optimiser over what wants a gradient moves adapters that are switched off",
    domain=Domain(
        strategy=lives(
            begins=TWO,
            about=(
                (("set_adapters", SECOND),),
                (("set_adapters", FIRST, SECOND), ("set_adapters", FIRST)),
                (("train",), ("set_adapters", SECOND), ("training_step",), ("set_adapters", FIRST)),
            ),
        )
    ),
    against=("paper",),
    examples=FEW,
    follows=("shapes.roles", "lifecycle.output", "lifecycle.inactive", "lifecycle.same_tensors"),
    diagnose=False,
)
def test_trainable(context: Context, case: LifeCase) -> None:
    """Once it is said which are active, nothing of the others wants a gradient, so that no optimiser moves it."""
    need(context.subject, case.spec, SEVERAL)
    with life(context, case) as layer:
        for done in layer.run():
            if done.name == "set_adapters":
                _only_active_want_gradients(layer, done)


def _only_active_want_gradients(layer: Life, done: Done) -> None:
    """Measured, too: what one step of AdamW over all that wants a gradient does to the others.

    What is not among the layer's parameters while it is not active, no optimiser over these is given.
    """
    shared = {id(layer.handles[n].raw(t)) for n in layer.active for t in layer.handles[n].names}
    given = {id(p) for p in layer.module.parameters()} - shared
    wanting = [
        (name, tensor)
        for name, tensor in sorted(layer.trained())
        if name not in layer.active and id(layer.handles[name].raw(tensor)) in given
    ]
    if wanting:
        moved = _decayed(layer)
        raise Deviation(
            layer.case,
            f"tensors of adapters that are not active and want a gradient, {done.after}",
            "none",
            listed(wanting),
            note=f"a step of AdamW with a weight decay of {WEIGHT_DECAY:g} over what wants a gradient, the gradients "
            f"being zeros, moves {listed(key for key in wanting if key in moved)}",
            diagnosis=TRAINABLE,
        )


def _decayed(layer: Life) -> set[tuple[str, str]]:
    """(adapter, tensor) of all that one such step moves."""
    before = layer.values()
    wanting = [p for p in layer.module.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(wanting, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY).step()
    layer.layer.clear_gradients()
    now = layer.values()
    return {
        (n, t) for n, held in before.items() for t in held if not rounding.same_values(held[t], now[n][t])
    }


SAVED_BESIDE = named(
    "saved_beside",
    "the file of an adapter also holds the tensors of one whose name contains its name",
    "who loads the file gets tensors of another adapter, or a warning about tensors that no layer takes",
    "compare whole parts of a tensor's name with the adapter's name, not any part of it",
)
ALIKE_MIXED = named(
    "alike_mixed_up",
    "two adapters of which one's name contains the other's are mixed up",
    "which adapter acts, is saved or is deleted depends on what the others are called",
    "compare names as a whole",
)


@check(
    "lifecycle",
    "major",
    title="what is saved of one adapter holds others, too",
    failure_mode="who loads the file gets tensors of another adapter, or a warning about tensors that no layer takes",
    domain=Domain(
        strategy=lives(
            begins=(
                ("save_and_load", FIRST),
                ("add_adapter", SECOND),
                ("save_and_load", FIRST),
                ("save_and_load", SECOND),
                ("add_adapter", ALIKE),
                ("save_and_load", FIRST),
                ("save_and_load", ALIKE),
            )
        )
    ),
    against=("paper",),
    examples=1,
    follows=("lifecycle.saved", "lifecycle.output", "lifecycle.others", "save_load.round_trip"),
    diagnose=False,
)
def test_saved_alone(context: Context, case: LifeCase) -> None:
    """The file of an adapter holds its own tensors alone, whatever others there are and however they are called."""
    need(context.subject, case.spec, (*SEVERAL, "save", "load"))
    own = 0
    with life(context, case) as layer:
        for done in layer.run():
            if done.name != "save_and_load" or done.path is None:
                continue
            held, alike = len(stored(done.path).tensors), ALIKE in layer.handles
            own = own or held
            if held != own:
                raise Deviation(
                    case, f"tensors in what is saved of {done.step[1]}", f"its own {own}", str(held),
                    diagnosis=SAVED_BESIDE if alike else None,
                )  # fmt: skip
            _comes_back(layer, done, alike)


def _comes_back(layer: Life, done: Done, alike: bool) -> None:
    """What is loaded is what was saved; where it is not, two names that are alike are why if it was before."""
    try:
        came_back(layer, done)
    except Deviation as found:
        if not alike:
            raise ToldElsewhere(
                "adapters do not come back, however they are called", "lifecycle.saved"
            ) from None
        found.diagnosis = ALIKE_MIXED
        raise


@check(
    "lifecycle",
    "critical",
    title="two adapters of which one's name contains the other's are mixed up",
    failure_mode="which adapter acts, or is deleted, depends on what the others are called",
    domain=Domain(
        strategy=lives(
            begins=(("add_adapter", ALIKE),),
            about=(
                (("set_adapters", ALIKE), ("set_adapters", FIRST), ("delete_adapter", FIRST), ("set_adapters", ALIKE)),
                (("set_adapters", ALIKE), ("training_step",), ("delete_adapter", ALIKE), ("set_adapters", FIRST)),
            ),
        )
    ),
    against=("paper",),
    examples=2,
    follows=("lifecycle.deleted", "lifecycle.output", "lifecycle.inactive", "lifecycle.others"),
    diagnose=False,
)  # fmt: skip
def test_names(context: Context, case: LifeCase) -> None:
    """Adding, switching, training and deleting hold for an adapter and another one whose name contains its name."""
    need(context.subject, case.spec, SEVERAL)
    try:
        _kept_apart(context, case.calling(ALIKE, SECOND))
    except (Deviation, SubjectRaised):
        raise ToldElsewhere("adapters are mixed up, however they are called", "lifecycle.output") from None
    try:
        _kept_apart(context, case)
    except (Deviation, SubjectRaised) as error:
        raise Deviation(
            case, f"adapters called {FIRST} and {ALIKE}", "kept apart", str(error), diagnosis=ALIKE_MIXED
        ) from None


def _kept_apart(context: Context, case: LifeCase) -> None:
    with life(context, case, ("training_step", "delete_adapter")) as layer:
        for done in layer.run():
            layer.judge(f"output {done.after}", layer.output())
            for name in done.values.keys() & layer.handles.keys() - set(done.states[0].active):
                _keeps_its_values(layer, done, name)


def _keeps_its_values(layer: Life, done: Done, name: str) -> None:
    now = layer.handles[name].values()
    changed = [t for t, value in done.values[name].items() if not rounding.same_values(value, now[t])]
    layer.context.demand(
        not changed, layer.case, f"tensors of {name} {done.after}", "as before", ", ".join(changed)
    )


HIGHER, LOWER = (
    named(
        f"{which}_rank",
        f"an adapter of a {which} rank is taken beside the first one, and does not fit it",
        "the model fails, or computes something else, at its first call after a second adapter was added",
        "give each adapter tensors of its own rank, or refuse a rank that does not fit when it is added",
    )
    for which in ("higher", "lower")
)


@check(
    "lifecycle",
    "critical",
    title="an adapter of another rank is taken beside the first one, and does not fit it",
    failure_mode="the model fails, or computes something else, at its first call after a second adapter was added",
    domain=Domain(
        strategy=lives(begins=(("add_adapter", SECOND), ("set_adapters", SECOND), ("set_adapters", FIRST)))
    ),
    against=("paper",),
    applies=lambda variant: variant.has_rank,
    examples=2,
    follows=("lifecycle.output", "lifecycle.others"),
    diagnose=False,
)
def test_other_rank(context: Context, case: LifeCase) -> None:
    """A second adapter of a higher or a lower rank acts, and leaves the first one alone; or is refused."""
    need(context.subject, case.spec, SEVERAL)
    try:
        _fits_or_is_refused(context, case, case.spec.rank)
    except Deviation:
        raise ToldElsewhere(
            "a second adapter of the same rank is not right, either", "lifecycle.output"
        ) from None
    for rank in _other_ranks(case):
        _fits_or_is_refused(context, case, rank)


def _other_ranks(case: LifeCase) -> list[int]:
    """The next higher rank that is offered on this layer, and the next lower one."""
    own, sizes = case.spec.rank, (case.variant, case.out_features, case.in_features)
    found = (next((r for r in ranks if offered_rank(*sizes, r)), 0)
             for ranks in (range(own + 1, own + 3), range(own - 1, 0, -1)))  # fmt: skip
    return [rank for rank in found if rank]


def _fits_or_is_refused(context: Context, case: LifeCase, rank: int) -> None:
    """The steps of the case with b of this rank; an exception at the first of them is a refusal."""
    second = dataclasses.replace(case.others[0], rank=rank)
    with life(context, case.beside(second)) as layer:
        before, values = layer.output(), layer.layer.values()
        try:
            taken = layer.take(layer.case.steps[0]) is not None
        except SubjectRaised:
            taken = False
        if taken:
            _acts(layer, rank)
        _first_is_as_it_was(layer, before, values)


def _acts(layer: Life, rank: int) -> None:
    """Each of the two, alone; what an adapter without tensors of the canonical shapes computes is not compared."""
    try:
        for step in layer.case.steps[1:]:
            layer.take(step)
            output = layer.output()
            if _has_its_shapes(layer, step[1]):
                layer.judge(f"output after set_adapters({step[1]})", output)
    except (SubjectRaised, Deviation) as error:
        raise Deviation(
            layer.case,
            f"an adapter of rank {rank} beside one of rank {layer.case.spec.rank}",
            "refused, or right",
            str(error),
            diagnosis=HIGHER if rank > layer.case.spec.rank else LOWER,
        ) from None


def _has_its_shapes(layer: Life, name: str) -> bool:
    case, held = layer.case, layer.held[name]
    sizes = case.out_features, case.in_features, held.spec
    return all(
        tuple(held.values[t.name].shape) == t.shape(*sizes) for t in case.variant.tensors if t.role != "base"
    )


def _first_is_as_it_was(layer: Life, before: Tensor, values: dict[str, Tensor]) -> None:
    now = layer.handles[FIRST].values()
    pairs = [(before, layer.output()), *((value, now[name]) for name, value in values.items())]
    same = all(rounding.same_values(was, found) for was, found in pairs)
    layer.context.demand(same, layer.case, f"{FIRST}, another rank having been added", "as before", "changed")

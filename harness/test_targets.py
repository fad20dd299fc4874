"""Whole models: which layers are adapted, on which side, and that the adapted model is the reference's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.cases.layer_cases import Domain
from harness.cases.tiny_models import ARCHITECTURES, EXPECTED, MANY, ModelCase, heads, logits
from harness.compare import default_targets, model_faults, rounding
from harness.compare.adapted_model import (
    AdaptedModel,
    Places,
    adapted_by,
    count,
    far,
    noise,
    observe,
    offers_models,
    reference_on,
    reference_places,
    subject_on,
    take_off,
    train,
)
from harness.compare.context import Context
from harness.compare.default_targets import on_the_same_layers
from harness.compare.ear import heard
from harness.compare.layer import Layer, SubjectRaised, answering
from harness.compare.loose_parameters import asked_in_vain
from harness.compare.offered import need
from harness.compare.outcome import Deviation, NoSlot, NotOffered, ToldElsewhere
from harness.compare.refusals import is_crash
from harness.compare.thresholds import ROUNDOFFS
from harness.engine.checks import check
from oracles.implementation import AdapterSpec, Unsupported
from oracles.variants import Variant
from reports.model import Diagnosis

Strategy = Callable[[Variant], st.SearchStrategy[ModelCase]]
ALL = tuple(ARCHITECTURES)
RARE = tuple(a for a in ARCHITECTURES if a not in EXPECTED or ARCHITECTURES[a].conv1d)
SHARING = ("llama", "opt", "t5", "bert")
TIED = ("llama", "gemma", "gpt2", "t5", "bert", "opt")
# One of each kind of block that the others repeat; every architecture is asked where it is cheap.
PLAIN = ("llama", "gpt2", "t5_gated", "bert", "opt", "gpt_neox", "phi", "qwen3")
DIVERSE = (*PLAIN, "mixtral")  # PEFT refuses LoRA's defaults on the experts of transformers 5


def spec_of(variant: Variant, rank: int = 2, alpha: float = 3.0, other_side: bool = False) -> AdapterSpec:
    """Rank 2 is even (HRA) and fits every layer (PiSSA); α ≠ r. ``other_side``: of a method that has two."""
    spec = AdapterSpec(variant.id, rank=rank, alpha=alpha)
    return variant.side.put(spec, True) if other_side and variant.side else spec


def on_each(architectures: tuple[str, ...]) -> Strategy:
    """Every architecture once, at the variant's default targets."""

    def strategy(variant: Variant) -> st.SearchStrategy[ModelCase]:
        return st.sampled_from([ModelCase(spec_of(variant), a) for a in architectures])

    return strategy


def by_name(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """Every list of names that is worth asking for, of every architecture; (IA)³ on either side by turns."""
    lists = [(a.id, targets) for a in ARCHITECTURES.values() for targets in a.endings]
    return st.sampled_from([
        ModelCase(spec_of(variant, other_side=i % 2 == 1), architecture, targets)
        for i, (architecture, targets) in enumerate(lists)
    ])  # fmt: skip


def sharing(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """One module under two names, or one weight in two layers of which the first is adapted."""
    kinds = [ARCHITECTURES[a] for a in SHARING]
    return st.sampled_from([
        ModelCase(spec_of(variant), a.id, (a.pair[0],), sharing=how) for a in kinds for how in ("module", "weight")
    ])  # fmt: skip


def trained_models(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """Diverse architectures, each once, with two ranks and scales; at PEFT's start and, mostly, far from it."""
    return st.sampled_from([
        ModelCase(spec_of(variant, 2 + 2 * (i % 2), (3.0, 8.0)[i % 2]), a, far=i % 4 != 3, seed=i)
        for i, a in enumerate(DIVERSE)
    ])  # fmt: skip


def listed(names: set[str]) -> str:
    """Layer names for a witness: the first few, and how many there are."""
    some = sorted(names)
    return ", ".join(some[:4]) + (f", ... ({len(some)})" if len(some) > 4 else "") if some else "none"


def same_places(
    context: Context,
    case: ModelCase,
    ours: AdaptedModel,
    theirs: Places,
    what: str,
    *,
    by_choice: bool = False,
) -> None:
    """Raise Deviation unless both adapt the same layers; the witness shows what is missing and what is extra.

    ``by_choice``: a library that adapts more than PEFT nearly everywhere, or what the authors do, has other defaults,
    which is no fault.
    """
    mine, other = set(ours.layers), set(theirs.layers)
    if mine == other:
        return
    note = f"missing: {listed(other - mine)}; extra: {listed(mine - other)}"
    known = default_targets.by_choice(context, case) if by_choice else None
    found = Deviation(case, what, listed(other), listed(mine), note=note, diagnosis=known)
    if by_choice and default_targets.as_the_authors(context, case):
        found.witness = dataclasses.replace(found.witness, agree=("author",))
    raise found


@check(
    "targets",
    "major",
    title="other layers are adapted by default than PEFT adapts",
    failure_mode="adapters do not fit the reference's, and the same settings train another model",
    domain=Domain(strategy=on_each(ALL)),
    against=("peft",),
    examples=2 * len(ALL),
    diagnose=False,
)
def test_default(context: Context, case: ModelCase) -> None:
    """With no targets given, the layers that are adapted are those that PEFT adapts on that architecture.

    The output head and the embeddings are not counted.
    """
    case = default_targets.odd_one(context, case)
    theirs, ours = reference_places(context, case), subject_on(context, case)
    more = ours.layers.keys() - theirs.layers
    if more and theirs.layers == default_targets.without_heads(ours.layers, case):
        return  # heads are asked about by targets.heads
    same_places(context, case, ours, theirs, "layers adapted by default", by_choice=True)


ASKS_FOR_TARGETS = Diagnosis(
    "targets.asked_for",
    "without targets an architecture is refused, in a sentence, that PEFT adapts by default",
    "settings that work with PEFT fail here until targets are given",
    agrees_with="PEFT's own way with architectures that are not in its table",
    documented_by=(
        r"(support|known|default).{0,60}architectures?",
        r"architectures?.{0,60}(support|known|default)",
    ),
    severity="minor",
    remedy="give this architecture default targets",
)


@check(
    "targets",
    "minor",
    title="without targets an architecture is refused that PEFT adapts by default",
    failure_mode="settings that work with PEFT fail here until targets are given",
    domain=Domain(strategy=on_each(RARE)),
    against=("peft",),
    examples=2 * len(RARE),
    follows=("targets.default",),
    diagnose=False,
)
def test_coverage(context: Context, case: ModelCase) -> None:
    """With no targets given, the architectures beyond the most common ones are adapted too, where PEFT adapts them.

    GPT-2 is asked of those who take its transposed layers when they are named.
    """
    theirs = reference_places(context, case)
    if case.kind.conv1d:
        subject_on(context, dataclasses.replace(case, targets=case.kind.endings[0]))
    try:
        adapted_by(context.subject, case)
    except SubjectRaised as refusal:
        known = None if is_crash(refusal) else ASKS_FOR_TARGETS
        wanted = listed(set(theirs.layers))
        raise Deviation(
            case, "layers adapted by default", wanted, "an error", note=str(refusal), diagnosis=known
        ) from None


@check(
    "targets",
    "major",
    title="targets given by name select other layers than in PEFT",
    failure_mode="a layer the user asked for is not adapted, or one is that was not asked for",
    domain=Domain(strategy=by_name),
    against=("peft",),
    examples=3 * len(ALL),
    diagnose=False,
)
def test_explicit(context: Context, case: ModelCase) -> None:
    """Targets given as endings of names select the layers that PEFT selects: whole parts of a name, in every block."""
    theirs, ours = reference_places(context, case), subject_on(context, case)
    said = heard(context.subject.name)
    try:
        same_places(context, case, ours, theirs, "layers adapted for these targets")
    except Deviation as found:
        if _last_parts_alone(context, case, set(ours.layers), set(theirs.layers)):
            if any(re.search(default_targets.NOT_FOUND, words, re.IGNORECASE) for words in said):
                raise NotOffered(f"paths as targets: {said[0]}", "adapt_model") from found
            found.diagnosis = PATHS
        elif _one_of_several(case, set(ours.layers), set(theirs.layers)):
            found.diagnosis = ONE_OF_SEVERAL
        raise
    _apart(case, ours)


PATHS = Diagnosis(
    "targets.last_part_alone",
    "a target that is a path names no layer: only the last part of a layer's name is compared",
    "layers cannot be told apart by where they are, and a list of targets from elsewhere adapts nothing",
    documented_by=(
        r"(exact|bare|own|last|leaf|child)\b.{0,30}\bnames?\b",
        r"\bnames?\b.{0,20}\b(exactly|alone|only)\b",
        # A path of its own in quotes, which it says it does not take.
        r"(cannot|can't|(does|do|will) not|doesn't|don't)\b.{0,60}['\"`]\w+\.\w+",
    ),
    remedy="select a layer whose name is the target or ends with a dot and the target, or refuse paths in a sentence",
)


ONE_OF_SEVERAL = Diagnosis(
    "targets.one_of_several",
    "of several targets only one selects layers",
    "most of what was asked for is not adapted, and nothing says so",
    remedy="adapt every layer that any of the targets names",
)


def _one_of_several(case: ModelCase, mine: set[str], wanted: set[str]) -> bool:
    """Whether the layers are those that one of the targets names."""
    named = [{n for n in wanted if n == t or n.endswith(f".{t}")} for t in case.targets or ()]
    return len(named) > 1 and bool(mine) and mine in named


def _last_parts_alone(context: Context, case: ModelCase, mine: set[str], wanted: set[str]) -> bool:
    """Whether all that is missing was named by a path, and would not be by the last part of it."""
    targets = case.targets or ()
    paths = [target for target in targets if "." in target]
    named = {n for n in wanted if any(n == t or n.endswith(f".{t}") for t in targets if t not in paths)}
    if not paths or mine != named:
        return False

    def selected(those: Sequence[str]) -> set[str]:
        return set(subject_on(context, dataclasses.replace(case, targets=tuple(dict.fromkeys(those)))).layers)

    return not selected(paths) and wanted - named <= selected([path.rpartition(".")[2] for path in paths])


def long_lists(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """Each long list of targets; (IA)³ on either side."""
    sides = (False, True) if variant.side else (False,)
    return st.sampled_from([
        ModelCase(spec_of(variant, other_side=side), MANY.id, targets)
        for targets in MANY.endings for side in sides
    ])  # fmt: skip


@check(
    "targets",
    "major",
    title="a long list of targets selects other layers than it names",
    failure_mode="a layer that was not asked for is adapted, or one that was is not, where a short list is right",
    domain=Domain(strategy=long_lists),
    against=("paper",),
    examples=4,
    follows=("targets.explicit",),
    may_refuse=True,
    whole=True,
    diagnose=False,
)
def test_long_list(context: Context, case: ModelCase) -> None:
    """Two dozen targets select the layers whose names they are, or end at a dot, and no other one."""
    try:
        as_named(context, case)
    except (Deviation, SubjectRaised) as found:
        short_list(context, dataclasses.replace(case, targets=(case.targets or ())[:2]))
        if isinstance(found, SubjectRaised):
            what = f"adapt_model with {len(case.targets or ())} targets"
            raise Deviation(case, what, "these layers adapted", "an error", note=str(found)) from found
        raise


def as_named(context: Context, case: ModelCase) -> None:
    """Raise Deviation unless the targets select what they name in a plain torch model."""
    ours, targets = adapted_by(context.subject, case), case.targets or ()
    meant = {n for n in MANY.layers if any(n == t or n.endswith(f".{t}") for t in targets)}
    same_places(context, case, ours, Places(frozenset(meant), 0), "layers adapted for these targets")


INSIDE_A_NAME = Diagnosis(
    "targets.inside_a_name",
    "a target also selects layers in whose names it merely occurs: it need not be the name, or end it at a dot",
    "a layer that nobody asked for is adapted and trained, and a checkpoint of it fits no other library",
    documented_by=(
        r"\bsub-?strings?\b",
        r"\b(contain|occur)\w*\b.{0,30}\b(names?|patterns?|targets?)\b",
        r"\bnames?\b.{0,30}\b(contain|match|include)\w*\b",
        r"\bmatch\w*\b.{0,40}\bpatterns?\b",
        r"\bmatch\w*\b.{0,40}\b(anywhere|in part|partial\w*|loosely)\b",
        r"\b(regex\w*|regular expressions?|suffix(es)?|part of (the|its|their) names?)\b",
    ),
    remedy="select a layer whose name is the target or ends with a dot and the target",
)


ENDS_WITHIN_A_PART = dataclasses.replace(
    INSIDE_A_NAME,
    mistake="targets.ends_within_a_part",
    summary="a target also selects layers whose names end with it in the middle of a part, and not at a dot",
)


LAST_PARTS = MANY.pair[:1]  # for who compares a target with the last part of a name alone


def short_list(context: Context, case: ModelCase) -> None:
    """Raise Deviation where a few targets select layers in whose names they merely occur.

    Raises Unsupported where the subject will not have such a model, NotOffered where it takes no whole names,
    ToldElsewhere where a few targets go wrong otherwise.
    """
    try:
        as_named(context, case)
    except SubjectRaised as error:
        raise Unsupported(str(error)) from error
    except Deviation as found:
        adapted, targets = set(adapted_by(context.subject, case).layers), case.targets or ()
        if not adapted:
            if targets != LAST_PARTS:
                short_list(context, dataclasses.replace(case, targets=LAST_PARTS))
            raise NotOffered("whole names as targets: none of them was adapted", "adapt_model") from found
        beside = {n for n in adapted if not any(n == t or n.endswith(f".{t}") for t in targets)}
        if beside and all(any(t in n for t in targets) for n in beside):
            ends = all(n.endswith(targets) for n in beside) and not _beginnings_select(context, case, targets)
            found.diagnosis = ENDS_WITHIN_A_PART if ends else INSIDE_A_NAME
            raise
        raise ToldElsewhere(f"a short list is not as named either: {found}", "targets.explicit") from found


def _beginnings_select(context: Context, case: ModelCase, targets: Sequence[str]) -> bool:
    """Whether the beginning of a target, at which no name ends, selects layers, too; or that cannot be asked."""
    beginning = targets[0][:-1]
    if not beginning:
        return True
    try:
        found = adapted_by(context.subject, dataclasses.replace(case, targets=(beginning,)))
    except (SubjectRaised, Unsupported):
        return False
    return bool(found.layers)


@check(
    "targets",
    "critical",
    title="the gate is on the other side of a layer than in PEFT",
    failure_mode="the activation that the paper rescales is not the one that is rescaled",
    domain=Domain(strategy=on_each(ALL)),
    against=("peft",),
    applies=lambda variant: variant.side is not None,
    examples=2 * len(ALL),
    follows=("forward.random_parameters", "forward.modes", "init.deterministic"),
    diagnose=False,
)
def test_sides(context: Context, case: ModelCase) -> None:
    """Each adapted layer of a model computes what PEFT's computes with the same gate, so the gate is on its side."""
    theirs = reference_on(context, case)
    ours = subject_on(context, case)
    values = far(theirs, case)
    theirs.write(values)
    both = sorted(set(ours.layers) & set(theirs.layers))
    if not both:
        raise ToldElsewhere(
            "no layer is adapted by default with both: see targets.default", "targets.default"
        )
    for name in both:
        gate = {t: v for (n, t), v in values.items() if n == name}
        same_function(context, case, name, ours.layers[name], theirs.layers[name], gate)


def same_function(
    context: Context, case: ModelCase, name: str, ours: Layer, theirs: Layer, values: dict[str, Tensor]
) -> None:
    """Raise Deviation unless two layers agree in shapes and output once they hold the same values."""
    for tensor, value in values.items():
        if tensor not in ours.names:
            raise NoSlot(f"the subject's {name} has no slot {tensor!r}", tensor)
        shape = tuple(ours.view(tensor).shape)
        context.demand(shape == tuple(value.shape), case, f"{name} {tensor}", tuple(value.shape), shape)
    ours.write(values)
    x = layer_input(theirs.module, case)
    with torch.no_grad():
        actual, exact = ours(x).double(), theirs(x).double()
    scale = float(torch.linalg.vector_norm(exact)) * rounding.roundoff(torch.float32)
    try:
        # Digits are for the checks of layers.
        context.judge(case, f"output of {name}", actual, exact, ROUNDOFFS["layer of a model"] * scale)
    except Deviation as found:
        found.diagnosis = model_faults.of_a_layer(case, name, x, actual)
        raise


def layer_input(module: nn.Module, case: ModelCase) -> Tensor:
    """x (3, in) for a tuner layer of PEFT's."""
    return torch.randn(3, int(module.in_features), generator=case.generator(5))  # type: ignore[arg-type]


HEADS_TOO = Diagnosis(
    "targets.heads_too",
    "by default the output head or an embedding gets an adapter, too",
    "a tied embedding would change under the model, or a large head be trained that nobody asked for",
    documented_by=(
        r"\b(all|every|each)\b.{0,20}\blinear\b",
        r"\b(lm_)?head\b.{0,20}\b(too|included|as well)\b",
    ),
    severity="major",
    remedy="leave the output head and the embeddings out where no targets are given",
)


@check(
    "targets",
    "major",
    title="the output head or the embeddings are touched",
    failure_mode="a tied embedding would change under the model, or a large head be trained that nobody asked for",
    domain=Domain(strategy=on_each(TIED)),
    against=("paper",),
    examples=2 * len(TIED),
    diagnose=False,
)
def test_heads(context: Context, case: ModelCase) -> None:
    """By default the output head and the embeddings get no adapter, stay tied and stay bit for bit as they were."""
    plain = heads(case.base())
    before, tied = {n: w.clone() for n, w in plain.items()}, len({id(w) for w in plain.values()})
    ours = subject_on(context, case)
    if there := before.keys() & ours.layers.keys():
        raise Deviation(case, "adapted heads", "none", listed(set(there)), diagnosis=HEADS_TOO)
    ours.write(far(ours, case))
    train(ours, case, 2)
    now = heads(ours.model)
    context.demand(
        len({id(w) for w in now.values()}) == tied,
        case,
        "weights of the heads",
        tied,
        "another number",
    )
    for name, weight in before.items():
        same = name in now and rounding.same_values(now[name], weight)
        context.demand(same, case, f"{name} after two steps", "bitwise as before", "changed or gone")


@check(
    "targets",
    "major",
    title="a shared layer or a shared weight is not adapted exactly once",
    failure_mode="where a layer or a weight is shared, other layers are adapted than were asked for, or none is",
    domain=Domain(strategy=sharing),
    against=("paper",),
    examples=4 * len(SHARING),
    follows=("targets.heads", "targets.explicit"),
    diagnose=False,
)
def test_shared(context: Context, case: ModelCase) -> None:
    """A layer with two names gets one adapter that acts once; a weight that another layer shares is not written."""
    plain = case.base()
    first, second = case.pair_names(plain)
    ours = subject_on(context, case)
    if not ours.layers and not subject_on(context, dataclasses.replace(case, sharing="")).layers:
        raise ToldElsewhere(
            "these targets name no layer here, shared or not: see targets.explicit", "targets.explicit"
        )
    if case.sharing == "module":
        adapted_once(context, case, ours, first, second)
    else:
        partner_untouched(context, case, ours, plain, second)


TWO_ADAPTERS = Diagnosis(
    "targets.two_adapters",
    "a layer that has two names gets two adapters, and each acts where the layer is called by its name",
    "what is one layer of the base is trained as two: twice the parameters, counted, trained and saved apart",
    remedy="adapt a layer once, whatever names it has",
)
ACTS_OTHERWISE = Diagnosis(
    "targets.acts_otherwise",
    "behind one of its two names a shared layer does not compute what it computes once adapted",
    "behind that name the adapter is missing, acts twice, or is another; alone, the same layer computes something else",
    remedy="adapt a layer once, whatever names it has",
)
SHARED_WEIGHT = Diagnosis(
    "targets.shared_weight",
    "adapting a layer changes another one that shares its weight",
    "a layer that nobody asked for computes something else",
    remedy="leave the weight that the base holds as it is",
)


def adapted_once(context: Context, case: ModelCase, ours: AdaptedModel, first: str, second: str) -> None:
    """Of the two names one has the adapter; behind either stands the layer adapted once, or as it was."""
    found = [name for name in (first, second) if name in ours.layers]
    adapters = len({id(ours.layers[name].module) for name in found})  # one may be listed under both its names
    held = bool(found) and as_if_once(context, case, ours, first, {first, second} - set(found), second)
    if adapters != 1:
        known = (TWO_ADAPTERS if held else ACTS_OTHERWISE) if found else None
        raise Deviation(case, "adapters on a layer with two names", "1", str(adapters), diagnosis=known)
    if not held:
        what = f"output of {first} and {second}"
        raise Deviation(
            case, what, "the layer adapted once", "something else behind one", diagnosis=ACTS_OTHERWISE
        )


def as_if_once(
    context: Context, case: ModelCase, ours: AdaptedModel, first: str, without: set[str], second: str
) -> bool:
    """Whether each name, far from the start, gives the layer adapted once; or, ``without`` an adapter, the base's."""
    lone = subject_on(context, dataclasses.replace(case, sharing=""))
    values = far(lone, case)
    lone.write(values)
    for layer in {
        id(layer.module): layer for n, layer in ours.layers.items() if n in (first, second)
    }.values():
        layer.write({t: v for (n, t), v in values.items() if n == first})
    x = torch.randn(*context.abilities.batch((3,)), 16, generator=case.generator(5))
    with torch.no_grad():
        once, never = lone.layers[first](x), case.base().get_submodule(first)(x)
        outputs = {name: ours.model.get_submodule(name)(x) for name in (first, second)}
    return all(close(y, once) or (name in without and close(y, never)) for name, y in outputs.items())


def close(actual: Tensor, exact: Tensor) -> bool:
    """Whether two outputs agree to a thousand roundoffs of their size."""
    gap = float(torch.linalg.vector_norm(actual - exact))
    return gap <= ROUNDOFFS["shared layer"] * rounding.roundoff(actual.dtype) * float(
        torch.linalg.vector_norm(exact)
    )


def partner_untouched(
    context: Context, case: ModelCase, ours: AdaptedModel, plain: nn.Module, partner: str
) -> None:
    """The layer that shares a weight with an adapted one, and was not asked for, computes as it did."""
    context.demand(
        partner not in ours.layers, case, "adapted layers", f"not {partner}", listed(set(ours.layers))
    )
    x = torch.randn(*context.abilities.batch((3,)), 16, generator=case.generator(5))
    with torch.no_grad():
        before = plain.get_submodule(partner)(x)
    for when in ("adapting", "two steps"):
        if when == "two steps":
            train(ours, case, 2)
        with torch.no_grad():
            after = ours.model.get_submodule(partner)(x)
        if not rounding.same_values(after, before):
            what = f"output of {partner} after {when}"
            raise Deviation(case, what, "as before", "changed", diagnosis=SHARED_WEIGHT)


@check(
    "targets",
    "critical",
    title="the adapted model is not PEFT's",
    failure_mode="on a whole model the adapters do not compute, or do not train, as the reference's do",
    domain=Domain(strategy=trained_models),
    against=("peft",),
    examples=4,
    follows=(
        "targets.sides",
        "forward.random_parameters",
        "forward.gradients",
        "forward.input_gradient",
        "shapes.canonical",
        "shapes.roles",
        "step0.gradients",
        "step0.dead_parameters",
        "init.principal",
        "init.residual",
    ),
    diagnose=False,
)
def test_model_forward(context: Context, case: ModelCase) -> None:
    """With PEFT's parameters carried over, logits, loss, every gradient and ten steps of SGD are PEFT's."""
    case, ours = on_the_same_layers(context, case)
    theirs = reference_on(context, case)
    if case.far:
        theirs.write(far(theirs, case))
    start = theirs.values()
    carry(context.variant, start, ours)
    theirs.model.double()
    exact = observe(theirs, case)
    actual, limits = observe(ours, case), noise(context, case, start, exact)
    for name, value in exact.items():
        kind = "trajectory" if "steps" in name else "formula"
        missing = torch.zeros_like(value)
        try:
            context.judge(case, name, actual.get(name, missing), value, limits[name], kind)
        except Deviation as found:
            found.diagnosis = model_faults.of_the_model(case, name, actual)
            raise


def carry(variant: Variant, values: dict[tuple[str, str], Tensor], ours: AdaptedModel) -> None:
    """Write PEFT's parameters into the subject. Raises Unverified if it lacks one of that name and shape.

    What follows from the base weight (PiSSA's residual, DeLoRA's norms) each side has of its own.
    """
    own = {t.name for t in variant.tensors if t.role != "parameter"}
    carried = {key: value for key, value in values.items() if key[1] not in own}
    for (name, tensor), value in carried.items():
        layer = ours.layers[name]
        if tensor not in layer.names or layer.view(tensor).shape != value.shape:
            raise NoSlot(
                f"the subject's {name} has no slot {tensor!r} of the shape {tuple(value.shape)}", tensor
            )
    ours.write(carried)


@check(
    "targets",
    "critical",
    title="other tensors are trained than the adapters' parameters",
    failure_mode="base weights would drift while the adapter is trained, or part of the adapter would never learn",
    domain=Domain(strategy=on_each(DIVERSE)),
    against=("peft",),
    examples=2 * len(DIVERSE),
    follows=("shapes.frozen_base", "shapes.canonical", "shapes.roles", "targets.sides"),
    diagnose=False,
)
def test_counts(context: Context, case: ModelCase) -> None:
    """As many numbers want a gradient as in PEFT's model, all in adapters, and a step changes nothing else."""
    case, ours = on_the_same_layers(context, case)
    _apart(case, ours)
    own = {id(t) for t in ours.trained()}
    strays = {n: t for n, t in ours.model.named_parameters() if t.requires_grad and id(t) not in own}
    expected, actual = reference_places(context, case).trainable, count(ours)
    told = _of_the_rest(ours, strays) or _in_vain(case, ours, strays)
    beside = sum(t.numel() for t in strays.values())
    if told is None or expected != actual - beside:
        context.demand(expected == actual, case, "trainable numbers in the model", expected, actual)
    if strays:
        raise Deviation(
            case, "trainable tensors outside adapters", "none", listed(set(strays)), diagnosis=told
        )
    frozen = {n: t.detach().clone() for n, t in ours.state().items() if id(t) not in own}
    ours.write(far(ours, case))
    written = {id(layer.raw(tensor)) for _, tensor, layer in ours.slots()}
    train(ours, case, 2)
    state = ours.state()
    changed = {
        n for n, t in frozen.items() if id(state[n]) not in written and not rounding.same_values(t, state[n])
    }
    context.demand(not changed, case, "tensors that changed outside adapters", "none", listed(changed))


ONE_ADAPTER = Diagnosis(
    "targets.one_adapter",
    "several layers have one adapter together: their slots are the same tensors",
    "what one layer learns moves the others, and a checkpoint with an adapter for each does not fit",
    remedy="make each layer tensors of its own",
)


def _apart(case: ModelCase, ours: AdaptedModel) -> None:
    """Raise Deviation where two layers, which are two modules, are given one tensor that is trained.

    What is frozen a method may share.
    """
    held: dict[int, str] = {}
    for place, tensor, layer in ours.slots():
        if not layer.raw(tensor).requires_grad:
            continue
        owner = held.setdefault(id(layer.raw(tensor)), place)
        if owner != place and not case.sharing:
            what = f"{tensor} of {place}"
            raise Deviation(case, what, "a tensor of its own", f"that of {owner}", diagnosis=ONE_ADAPTER)


REST_LEFT = Diagnosis(
    "targets.rest_left",
    "what lies outside the adapted layers stays trainable: only these are frozen",
    "an optimiser over all parameters that want a gradient would train the rest of the model, too",
    documented_by=(
        r"trainable.?param",
        r"returns? .{0,60}\bparam",
        r"(freez|frozen|requires_grad).{0,80}\b(you|caller|user)",
    ),
    severity="minor",
    remedy="freeze the model's other parameters when it is adapted, or hand the caller the adapters' alone and say so",
)


def _of_the_rest(ours: AdaptedModel, strays: Mapping[str, Tensor]) -> Diagnosis | None:
    """What it means where nothing is frozen but what the adapted layers hold."""
    within = {id(t) for layer in ours.layers.values() for t in layer.module.parameters()}
    rest = [t for t in ours.model.parameters() if id(t) not in within]
    beside_them = not any(id(t) in within for t in strays.values())
    return REST_LEFT if rest and beside_them and all(t.requires_grad for t in rest) else None


def _in_vain(case: ModelCase, ours: AdaptedModel, strays: Mapping[str, Tensor]) -> Diagnosis | None:
    """What trainable tensors outside adapters mean where a step of training leaves no gradient on them."""
    if not strays:
        return None
    held = [t.detach() for t in case.base().state_dict().values()]
    train(ours, case, 1)
    return asked_in_vain(strays, held, any(t.grad is not None for t in strays.values()))


@check(
    "targets",
    "major",
    title="detaching does not give back the model",
    failure_mode="the base model is damaged by having been adapted once",
    domain=Domain(strategy=on_each(PLAIN)),
    against=("paper",),
    examples=2 * len(PLAIN),
    follows=("merge.detach",),
    diagnose=False,
)
def test_detach(context: Context, case: ModelCase) -> None:
    """After training and detaching every adapter, the model's state and logits are bit for bit what they were."""
    need(context.subject, case.spec, ("detach",))
    plain = case.base()
    ours = subject_on(context, case)
    ours.write(far(ours, case))
    train(ours, case, 2)
    take_off(context.subject, ours)
    before, after = plain.state_dict(), ours.model.state_dict()
    extra = listed(set(before) ^ set(after))
    context.demand(extra == "none", case, "names in the model's state", "as before", f"differ in {extra}")
    changed = {n for n, t in before.items() if not rounding.same_values(t, after[n])}
    context.demand(not changed, case, "weights after detach", "bitwise as before", listed(changed))
    with torch.no_grad(), answering(ours.who, "the detached model's forward", of=case.architecture):
        same = rounding.same_values(logits(plain, case), logits(ours.model, case))
    context.demand(same, case, "logits after detach", "bitwise as before", "changed")


PLACES = r"(layers?|modules?|adapters?)"
DONE = r"(adapted|wrapped|replaced|matched|converted|patched|swapped|modified|injected|found)"
NAMES_NOTHING = Diagnosis(
    "targets.names_nothing",
    "a target that names no layer is accepted",
    "a mistyped target trains nothing, or something that was not asked for",
    documented_by=(
        rf"returns?\b.{{0,20}}\b(number|count) of .{{0,40}}{PLACES}.{{0,30}}\b{DONE}\b",
        rf"(may|can|might|could) be (0|zero|empty)\b.{{0,60}}\b(match\w*|names?|patterns?|targets?|{PLACES})",
        r"\b(0|zero|empty|unchanged|nothing)\b.{0,60}\bno\b.{0,30}\bmatch",
        r"no match(es)?\b.{0,60}\b(0|zero|empty|unchanged|nothing|ignored|silently|no-op)\b",
    ),
    remedy="refuse targets that name no layer, or warn of them",
)


def nothing_named(variant: Variant) -> st.SearchStrategy[ModelCase]:
    """A target that is no layer's name, on two architectures."""
    return st.sampled_from([ModelCase(spec_of(variant), a, ("no_such_layer",)) for a in ("llama", "bert")])


@check(
    "targets",
    "major",
    title="a target that names no layer is accepted",
    failure_mode="a mistyped target trains nothing, or something that was not asked for",
    domain=Domain(strategy=nothing_named),
    against=("peft",),
    examples=2,
    diagnose=False,
)
def test_nothing_named(context: Context, case: ModelCase) -> None:
    """Targets of which none is a layer's name are refused, as PEFT refuses them, or warned of."""
    try:
        ours = adapted_by(context.subject, case)
    except Unsupported:
        if offers_models(context.subject):
            return
        raise
    except SubjectRaised:
        return
    said = " ".join(heard(context.subject.name))
    if not ours.layers and re.search(rf"no_such_layer|{default_targets.NOT_FOUND}", said, re.IGNORECASE):
        return
    found = listed(set(ours.layers)) if ours.layers else "a model without adapters"
    what = f"adapt_model with targets {case.targets}"
    raise Deviation(case, what, "an exception, or a warning", found, diagnosis=NAMES_NOTHING)

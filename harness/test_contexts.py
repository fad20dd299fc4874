"""Contexts: the same function in evaluation, without gradients, checkpointed, under autocast, compiled and copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.cases.layer_cases import Case, Domain
from harness.cases.leaf_output import with_leaf_output
from harness.compare import contexts, rounding
from harness.compare.context import Context, Pair, double
from harness.compare.contexts import observe, same
from harness.compare.held_outside import passed_by
from harness.compare.layer import Layer, SubjectRaised, adapt, answering, situation
from harness.compare.loose_parameters import but_for_further
from harness.compare.outcome import Deviation, NotOffered, OutsideDomain, ToldElsewhere
from harness.compare.probing import far_layer, is_the_bases
from harness.engine.checks import check
from oracles.disagreements import disagreements
from oracles.seeding import seed_torch
from reports.model import Diagnosis

SMALL = Domain(dtypes=("float32",), sizes=(2, 9), ranks=(1, 6), batches=((4,), (2, 3)))
CAST = Domain(dtypes=("float32",), sizes=(6, 9), ranks=(5, 6), batches=((4,),))  # α/r is no bf16 number
EXAMPLES = 4
RATE = 0.4
WRITES = ("one write", "two writes", "three writes")
NARROW = (
    1e-4,
    1e4,
)  # sizes of weights: the squares are below float16's smallest number, or above its largest
WRONG_BEFORE = (
    "forward.random_parameters",
    "forward.gradients",
    "forward.input_gradient",
    "forward.eval_mode",
    "forward.eval_gradients",
    "step0.nothing_trains",
    "step0.gradients",
)

SEEN_LATER = (r"(merge|fold|cache)\w*.{0,60}\beval", r"\beval\w*.{0,60}(merge|fold|cache)", r"seen after")
FOLDED = Diagnosis(
    "contexts.folded_in_eval",
    "the adapter is folded into the weight when evaluation mode begins, and what is written afterwards is not seen",
    "a checkpoint that is loaded into a model in evaluation mode has no effect until train() and eval() are called",
    agrees_with="microsoft/LoRA's loralib, which merges at eval() (merge_weights=True)",
    documented_by=SEEN_LATER,
    severity="minor",
    remedy="compute the adapter's branch at each call, or fold again whenever a tensor is written",
)
CACHED = Diagnosis(
    "contexts.cached_in_eval",
    "something that an earlier call in evaluation mode computed is kept, and not computed anew when the tensors change",
    "a checkpoint that is loaded into a model in evaluation mode acts in part, or not at all, until train() and eval() "
    "are called",
    documented_by=SEEN_LATER,
    severity="major",
    remedy="keep nothing between calls, or drop what is kept whenever a tensor that it was computed from is written",
)


UNFOLDS_WHAT_IS_THERE = Diagnosis(
    "contexts.unfolds_what_is_there",
    "back in training mode, what the tensors hold by then is taken out of the weight, not what evaluation folded in",
    "a checkpoint that is loaded in evaluation mode leaves another base weight behind when training goes on",
    agrees_with="microsoft/LoRA's loralib, whose train() subtracts the update of now",
    documented_by=(
        r"subtract\w*.{0,60}\b(now|current|then)\b",
        r"(writ|load)\w*.{0,60}\beval.{0,60}\b(lost|ignored)",
    ),
    severity="minor",
    remedy="keep what was folded in, or the weight from before, and take out exactly that",
)


STAYS_FOLDED = Diagnosis(
    "contexts.stays_folded",
    "eval() folds the adapter into the weight, and train() does not take it out: its tensors act no more",
    "training that goes on after an evaluation trains nothing, and what is loaded then has no effect",
    severity="critical",
    remedy="take out what eval() folded in as soon as training mode is back",
)


@check(
    "contexts",
    "critical",
    title="what is written into the adapter in evaluation mode has no effect, or not at once",
    failure_mode="a checkpoint that is loaded into a model in evaluation mode would leave the earlier adapter at work",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=(*WRONG_BEFORE, "forward.stale_weights"),
    diagnose=False,
)
def test_written_in_eval(context: Context, case: Case) -> None:
    """In evaluation mode, called before and after, the layer computes with the parameters that were written last."""
    layer = context.layer(case)
    layer.train(False)
    if not layer(case.x).requires_grad:  # folded in: what is written is to be seen when training mode is back
        _unfolds_what_it_folded(context, contexts.elsewhere(case, 1), layer)
        _seen_in_evaluation(context, contexts.elsewhere(case, 2), layer)
        raise ToldElsewhere("in evaluation mode no gradient reaches the adapter", "forward.eval_gradients")
    for turn in range(len(WRITES)):
        now = contexts.elsewhere(case, turn)
        with torch.no_grad():
            before = layer(now.x)
            layer.write(contexts.parameters(layer, now))
            unseen = rounding.same_values(layer(now.x), before)
        try:
            _like_a_fresh_one(context, now, layer, f"in evaluation mode after {WRITES[turn]}")
        except Deviation as found:
            if _flipping_helps(context, now, layer):
                found.diagnosis = FOLDED if unseen and not turn else CACHED
                found.alone = True  # held against the library's own fresh layer
            raise


def _unfolds_what_it_folded(context: Context, case: Case, layer: Layer) -> None:
    """Written while folded in, and back in training mode, the layer is that of the written parameters."""
    with torch.no_grad():
        folded = layer(case.x)
    layer.write(contexts.parameters(layer, case))
    layer.train()
    try:
        _like_a_fresh_one(context, case, layer, "in training mode, after a write in evaluation mode")
    except Deviation as found:
        with torch.no_grad():
            stays = rounding.same_values(layer(case.x), folded)
        found.diagnosis, found.alone = STAYS_FOLDED if stays else UNFOLDS_WHAT_IS_THERE, True
        raise


def _seen_in_evaluation(context: Context, case: Case, layer: Layer) -> None:
    """What is written while folded in is seen at once, or is told as what loralib does."""
    layer.train(False)
    layer(case.x)
    layer.write(contexts.parameters(layer, case))
    try:
        _like_a_fresh_one(context, case, layer, "in evaluation mode after a write")
    except Deviation as found:
        if _flipping_helps(context, case, layer):
            found.diagnosis, found.alone = FOLDED, True
        raise


def _like_a_fresh_one(context: Context, case: Case, layer: Layer, where: str) -> None:
    """The output is that of a layer which has had no other parameters, and was never in evaluation mode."""
    fresh = context.layer(case)
    fresh.write(layer.values())
    wanted = {"output": fresh(case.x).detach().double()}
    with torch.no_grad():
        same(context, case, where, {"output": layer(case.x).double()}, wanted)


def _flipping_helps(context: Context, case: Case, layer: Layer) -> bool:
    """Whether the parameters are seen once the layer has been in training mode and back."""
    layer.train()
    layer.train(False)
    try:
        _like_a_fresh_one(context, case, layer, "")
    except Deviation:
        return False
    return True


GRAPH_KEPT = Diagnosis(
    "contexts.graph_under_no_grad",
    "under torch.no_grad() the layer builds a graph all the same: its output wants a gradient",
    "evaluation and generation would hold the memory of a training pass",
    severity="major",
    remedy="leave autograd's mode to the caller: no torch.enable_grad() around forward",
)


@check(
    "contexts",
    "critical",
    title="without gradients the layer computes another function",
    failure_mode="what is evaluated, or generated, would not be what was trained",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=("forward.random_parameters", "forward.gradients"),
    diagnose=False,
)
def test_no_grad(context: Context, case: Case) -> None:
    """Under ``torch.no_grad()`` the output is that of the same call with gradients, in training and evaluation mode.

    And it has no graph, and leaves the layer as it was.
    """
    layer = far_layer(context, case)
    for training in (True, False):
        layer.train(training)
        wanted = {"output": layer(case.x).detach().double()}
        with torch.no_grad(), situation("under no_grad"):
            y = layer(case.x)
            actual = {"output": y.double()}
        try:
            same(context, case, f"under no_grad in {_mode(training)} mode", actual, wanted)
            again = {"output": layer(case.x).detach().double()}
            after = f"with gradients after a call under no_grad in {_mode(training)} mode"
            same(context, case, after, again, wanted)
        except Deviation as found:
            # It explains what is measured without gradients, and is explained by none of that.
            found.alone = True
            raise
        if y.requires_grad:
            quantity = f"output under no_grad in {_mode(training)} mode"
            raise Deviation(case, quantity, "without a graph", "wants a gradient", diagnosis=GRAPH_KEPT)


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


@check(
    "contexts",
    "critical",
    title="under torch.inference_mode the layer computes another function, or cannot be trained afterwards",
    failure_mode="what is generated would be another model's, or an evaluation between epochs would end the training",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=(*WRONG_BEFORE, "contexts.no_grad"),
    diagnose=False,
)
def test_inference_mode(context: Context, case: Case) -> None:
    """Under ``torch.inference_mode()`` the output is that of an ordinary call, and so are gradients afterwards."""
    plain, layer = far_layer(context, case), far_layer(context, case)
    wanted = observe(plain, case)
    if _lost_by_evaluation(layer, case):
        raise ToldElsewhere(
            "after eval() and train() nothing of the adapter acts", "contexts.written_in_eval"
        )
    for training in (True, False):
        layer.train(training)
        same(context, case, f"under inference_mode in {_mode(training)} mode", _inferred(layer, case), wanted)
        layer.train()
        after = observe(layer, case, where="after a call under inference_mode")
        same(context, case, "after a call under inference_mode", after, wanted)


def _lost_by_evaluation(layer: Layer, case: Case) -> bool:
    """Whether an output wanted a gradient before the layer was in evaluation mode, and wants none afterwards."""
    before = layer(case.x).requires_grad
    layer.train(False)
    layer(case.x)
    layer.train()
    return before and not layer(case.x).requires_grad


def _inferred(layer: Layer, case: Case) -> rounding.Quantities:
    """The output under inference mode; NotOffered where it is refused."""
    try:
        with torch.inference_mode():
            return {"output": layer(case.x).double().clone()}
    except SubjectRaised as refusal:
        raise NotOffered(f"a call under torch.inference_mode: {refusal}", "inference_mode") from refusal


@check(
    "contexts",
    "critical",
    title="where the input needs no gradient the layer computes or trains otherwise",
    failure_mode="the first adapted layer of a model, whose input comes from frozen embeddings, is trained wrongly",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_frozen_input(context: Context, case: Case) -> None:
    """Output and gradients of the parameters are the same whether x needs a gradient or not."""
    layer = far_layer(context, case)
    wanted = observe(layer, case)
    same(
        context,
        case,
        "where x needs no gradient",
        observe(layer, case, wants_gradient=False, where="where x needs no gradient"),
        wanted,
    )


@check(
    "contexts",
    "critical",
    title="where a part of the adapter is frozen the layer computes or trains otherwise",
    failure_mode="training that freezes one of its tensors, or an adapter beneath others that train, follows another "
    "trajectory",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES // 2,
    follows=(*WRONG_BEFORE, "contexts.frozen_input"),
    diagnose=False,
)
def test_partly_frozen(context: Context, case: Case) -> None:
    """With some tensors frozen by ``requires_grad_(False)``, output and the other gradients are what they were.

    All of them, where a gradient has to reach what is below, and all but one, as LoRA-FA trains B alone.
    """
    layer = far_layer(context, case)
    wanted = observe(layer, case)
    trained = {n: layer.raw(n) for n in layer.names if layer.raw(n).requires_grad and layer.raw(n).is_leaf}
    alone = [n for n, tensor in trained.items() if sum(tensor is other for other in trained.values()) == 1]
    for name in ("", *(alone if len(trained) > 1 else ())):
        where = f"where {name} alone trains" if name else "where all of the adapter is frozen"
        found = _frozen_but(layer, case, trained, name, where)
        try:
            same(context, case, where, found, wanted)
        except Deviation as deviation:
            if not name and is_the_bases(found["output"], case):
                deviation.diagnosis = _off_when_frozen(context)
            raise


def _off_when_frozen(context: Context) -> Diagnosis:
    """What is said where requires_grad decides whether the adapter acts, as it does in one author's code."""
    does = [e for e in disagreements(context.variant.id) if e.id == f"{context.variant.id}.frozen_gate"]
    return Diagnosis(
        "contexts.off_when_frozen",
        "an adapter that is frozen does not act: the layer answers as its base",
        "freezing a trained adapter, for inference or beneath others that train, takes it away without a word",
        agrees_with=next((n for e in does for n in e.between if n != "PEFT"), None),
        documented_by=(
            r"requires_grad.{0,80}(applied|used|active|skipp)",
            r"frozen.{0,60}(not applied|skipp|inactive)",
        ),
        severity="major" if does else None,
        remedy="apply the adapter whether its tensors want a gradient or not",
    )


def _frozen_but(
    layer: Layer, case: Case, trained: Mapping[str, Tensor], name: str, where: str
) -> rounding.Quantities:
    """What the layer computes while no other of its tensors trains; they train again afterwards."""
    try:
        for each, tensor in trained.items():
            tensor.requires_grad_(each == name)
        found = observe(layer, case, where=where)
    finally:
        for tensor in trained.values():
            tensor.requires_grad_(True)
    return found


@check(
    "contexts",
    "critical",
    title="where the base layer's output is made to want a gradient the layer computes or trains otherwise",
    failure_mode="training with gradient checkpointing, for which a hook makes a frozen layer's output want a "
    "gradient, fails or follows another trajectory",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES // 4,
    follows=(*WRONG_BEFORE, "contexts.frozen_input"),
    diagnose=False,
)
def test_leaf_output(context: Context, case: Case) -> None:
    """A forward hook that calls requires_grad_() on the base's output, a leaf of the graph then, changes nothing.

    x needs no gradient. transformers' enable_input_require_grads hooks an embedding this way.
    """
    wanted = observe(far_layer(context, case), case, wants_gradient=False)
    context.layer(case)  # seeds as the next line does, and leaves out what may be refused
    seed_torch(case.seed)
    layer = adapt(context.subject, with_leaf_output(case.base()), case.spec)
    layer.write(contexts.parameters(layer, case))
    where = "where a hook makes the base's output want a gradient"
    same(context, case, where, observe(layer, case, wants_gradient=False, where=where), wanted)


@check(
    "contexts",
    "critical",
    title="over a base layer in evaluation mode the adapter computes another function",
    failure_mode="an adapter that is attached to a model that was evaluated before is another adapter",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=(*WRONG_BEFORE, "forward.stale_weights"),
    diagnose=False,
)
def test_base_in_eval(context: Context, case: Case) -> None:
    """Without dropout, attached to a base in evaluation mode the layer computes and trains as over one in training."""
    wanted = observe(far_layer(context, case), case)
    context.layer(case)  # seeds as the next line does, and leaves out what may be refused
    seed_torch(case.seed)
    layer = adapt(context.subject, case.base().eval(), case.spec)
    folded = not layer(case.x).requires_grad  # nothing is meant to be written before training mode is back
    if folded:
        layer.train()
    layer.write(contexts.parameters(layer, case))
    where = "over a base in evaluation mode"
    same(context, case, where, observe(layer, case, where=where), wanted)
    if folded:
        layer.train(False)
        with torch.no_grad():
            now = {"output": layer(case.x).double()}
        same(context, case, f"{where}, trained and folded again", now, wanted, 2.0)


@check(
    "contexts",
    "critical",
    title="gradients of several passes do not add up",
    failure_mode="training with accumulated gradients, or of a layer that is called twice, follows one of the passes",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_accumulation(context: Context, case: Case) -> None:
    """Over two backward passes, and over two calls before one backward pass, the gradients are the sum of both."""
    layer, second = far_layer(context, case), _flipped(case)
    first_alone, second_alone = observe(layer, case), observe(layer, second)
    names = [n for n in first_alone if n not in ("output", "gradient of x")]
    wanted = {n: first_alone[n] + second_alone[n] for n in names}
    layer.clear_gradients()
    for each in (case, second):
        _backward(layer, [each])
    same(context, case, "over two backward passes", contexts.gradients(layer), wanted, 2.0)
    layer.clear_gradients()
    _backward(layer, [case, second])
    # Within one pass autograd adds up a tensor's uses in an order of its own, and beside another process call by call:
    # what it rounds by is no number of the subject's.
    kept = copy.copy(context.worst)
    same(context, case, "over two calls and one backward pass", contexts.gradients(layer), wanted, 2.0)
    context.worst = kept
    layer.clear_gradients()


def _flipped(case: Case) -> Case:
    """The same base and parameters with the input's and the cotangent's features in reverse."""
    other = case.but()
    vars(other).update(
        weight=case.weight,
        bias_vector=case.bias_vector,
        input=case.x.flip(-1),
        cotangent=case.cotangent.flip(-1),
    )
    return other


def _backward(layer: Layer, cases: list[Case]) -> None:
    """Call the layer on every x, then go back once."""
    outputs = [layer(case.x.requires_grad_()) for case in cases]
    loss = torch.stack([(y * c.cotangent).sum() for y, c in zip(outputs, cases, strict=True)]).sum()
    with answering(layer.who, "a backward pass"):
        if loss.requires_grad:
            loss.backward()


@check(
    "contexts",
    "critical",
    title="through torch.utils.checkpoint the layer computes or trains otherwise",
    failure_mode="a model that is trained with gradient checkpointing follows another trajectory",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_checkpoint(context: Context, case: Case) -> None:
    """Recomputed in the backward pass, with the same dropout mask, output and gradients are those of a plain call.

    Both forms of ``torch.utils.checkpoint`` are asked; the newer one also with an x that needs no gradient.
    """
    wanted, dropping = _plainly(context, case, True)
    for reentrant in (False, True):
        how = "reentrant" if reentrant else "non-reentrant"
        same(
            context,
            dropping,
            f"through a {how} checkpoint",
            _checkpointed(context, case, reentrant, True),
            wanted,
        )
    frozen = _checkpointed(context, case, False, False)
    same(context, dropping, "through a checkpoint where x needs no gradient", frozen, wanted)


def _plainly(context: Context, case: Case, wants_gradient: bool) -> tuple[rounding.Quantities, Case]:
    """What a fresh layer in training mode computes from one seed of torch's generator, and the case it was of.

    Raises OutsideDomain where the same seed gives another mask the next time: then there is nothing to compare with.
    """
    found = []
    for _ in range(2):
        layer, dropping = contexts.trained_with_dropout(context, case, RATE)
        seed_torch(case.seed)
        found.append(observe(layer, dropping, wants_gradient=wants_gradient))
    if not torch.equal(found[0]["output"], found[1]["output"]):
        raise OutsideDomain(
            "two fresh layers of one seed of torch's generator answer differently in training mode"
        )
    return found[0], dropping


def _checkpointed(context: Context, case: Case, reentrant: bool, wants_gradient: bool) -> rounding.Quantities:
    layer, dropping = contexts.trained_with_dropout(context, case, RATE)
    seed_torch(case.seed)

    def call(x: Tensor) -> Tensor:
        # The bare module: torch ends the recomputation by an exception of its own.
        with answering(layer.who, "a call through torch.utils.checkpoint"):
            y: Tensor = checkpoint(layer.module, x, use_reentrant=reentrant)
        return y

    return observe(layer, dropping, call, wants_gradient=wants_gradient, where="through a checkpoint")


AUTOCAST = "under autocast"
WIDE_OUTPUT = Diagnosis(
    "contexts.autocast_wide",
    "under autocast the layer answers in another dtype than a plain layer, which answers in bfloat16",
    "activations take twice the memory, and code that expects autocast's dtype meets another one",
    agrees_with="PEFT 0.21, whose HRA and DeLoRA answer in float32 under autocast",
    documented_by=(r"autocast.{0,80}(dtype|float32|precision)", r"(dtype|float32|precision).{0,80}autocast"),
    severity="minor",
    remedy="return the output in the dtype that the base layer's output has under autocast",
)


@check(
    "contexts",
    "major",
    title="under autocast the output has another dtype than a plain layer's",
    failure_mode="in mixed-precision training the next operation raises, or runs in another precision",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=("dtype.output",),
    diagnose=False,
)
def test_autocast_dtype(context: Context, case: Case) -> None:
    """Under ``torch.autocast("cpu", torch.bfloat16)`` the output's dtype is that of the plain layer under autocast."""
    layer = far_layer(context, case)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), situation(AUTOCAST):
        actual, wanted = layer(case.x).dtype, case.base()(case.x).dtype
    if actual != wanted:
        told = WIDE_OUTPUT if actual == case.torch_dtype else None
        raise Deviation(case, "dtype of y under autocast", str(wanted), str(actual), diagnosis=told)


@check(
    "contexts",
    "critical",
    title="under autocast output or gradients are off by more than bfloat16 accounts for",
    failure_mode="mixed-precision training follows another trajectory, or diverges",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
)
def test_autocast(context: Context, case: Case) -> None:
    """Under ``torch.autocast("cpu", torch.bfloat16)`` output and gradients are the float64 ones up to bf16 rounding.

    Far from the start, and at the start over weights whose squares float16 cannot hold.
    """
    _as_bfloat16(context, context.pair(case, "far"))
    for scale in NARROW:
        with but_for_further(context, case):
            _as_bfloat16(context, context.pair(_scaled(case, scale), "initial"))


def _as_bfloat16(context: Context, pair: Pair) -> None:
    case = pair.case
    actual = observe(pair.ours, case, _under_autocast(pair.ours), where=AUTOCAST)
    exact = observe(pair.theirs, double(case))
    noise = context.noise(pair, gradients=True, unit=torch.bfloat16)
    for name in [n for n in exact if n in actual and n in noise]:
        kind = "precision gradient" if name.startswith("gradient") else "precision"
        context.judge(case, f"{name} {AUTOCAST}", actual[name], exact[name], noise[name], kind)


def _scaled(case: Case, scale: float) -> Case:
    """The same case over a base whose weight is ``scale`` times as large."""
    other = case.but()
    vars(other).update(
        weight=case.weight * scale,
        bias_vector=case.bias_vector,
        input=case.input,
        cotangent=case.cotangent,
    )
    return other


def _under_autocast(layer: Layer) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    return call


STEPS = 4
COMPILABLE = Domain(dtypes=("float32",), sizes=(5, 7), ranks=(2, 2), batches=((4,),))

RECOMPILED = Diagnosis(
    "contexts.recompiled",
    "under torch.compile the layer is compiled anew at every step",
    "compiled training would be slower than without compiling, until the limit of recompilations ends it",
    severity="minor",
    remedy="keep Python values that change from step to step out of the forward pass: counters, flags, shapes as keys",
)


@check(
    "contexts",
    "major",
    title="under torch.compile the layer computes or trains otherwise",
    failure_mode="compiled training follows another trajectory",
    domain=COMPILABLE,
    against=("paper",),
    examples=1,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_compile(context: Context, case: Case) -> None:
    """Compiled (backends ``eager`` and ``aot_eager``), output and gradients are those of plain calls at every step.

    The parameters are others at each step; from the third on nothing is compiled that had been compiled before.
    Where the graph breaks is the subject's own affair.
    """
    try:
        with _unpatched():
            for backend in ("eager", "aot_eager"):
                _compiled(context, case, backend)
    finally:
        torch._dynamo.reset()


@contextmanager
def _unpatched() -> Iterator[None]:
    """Take out again what torch.compile puts into the constructor of every module: it slows whatever comes after."""
    before = dict(vars(nn.Module))
    try:
        yield
    finally:
        for name in [n for n in vars(nn.Module) if n not in before]:
            delattr(nn.Module, name)
        for name, value in before.items():
            if vars(nn.Module).get(name) is not value:
                setattr(nn.Module, name, value)


def _compiled(context: Context, case: Case, backend: str) -> None:
    plain, layer = far_layer(context, case), far_layer(context, case)
    graphs: list[int] = []
    call = _counting(layer, backend, graphs)
    made = []
    for turn in range(STEPS):
        now = contexts.elsewhere(case, turn)
        for each in (plain, layer):
            each.write(contexts.parameters(each, now))
        where = f"compiled with {backend}, step {turn + 1}"
        same(context, now, where, observe(layer, now, call, where=where), observe(plain, now))
        made.append(len(graphs))
    if made[-1] > made[-2] > made[-3]:
        quantity = f"graphs compiled with {backend} after each step"
        raise Deviation(case, quantity, "no more after the second", str(made), diagnosis=RECOMPILED)


def _counting(layer: Layer, backend: str, graphs: list[int]) -> Callable[[Tensor], Tensor]:
    """The layer compiled; NotOffered where compiling raises. ``graphs`` grows by one with each that is compiled."""
    compiled_there = getattr(layer.module, "compiled_there", None)
    if (
        compiled_there is not None
    ):  # a stand-in: it is the module in the subject's own process that is compiled
        return _counting_there(layer, backend, graphs, compiled_there)
    torch._dynamo.reset()
    inner = torch._dynamo.lookup_backend(backend)

    def counted(graph: Any, inputs: list[Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return inner(graph, inputs)

    compiled = Layer(layer.adapted, layer.who)
    module = torch.compile(layer.module, backend=counted)

    def call(x: Tensor) -> Tensor:
        try:
            with answering(compiled.who, f"a call under torch.compile with {backend}"):
                y: Tensor = module(x)
                return y
        except SubjectRaised as refusal:
            raise NotOffered(f"torch.compile: {refusal}", "compile") from refusal

    return call


def _counting_there(
    layer: Layer, backend: str, graphs: list[int], compiled_there: Callable[[str], Any]
) -> Callable[[Tensor], Tensor]:
    try:
        with answering(layer.who, f"torch.compile with {backend}"):
            module, made = compiled_there(backend)
    except SubjectRaised as refusal:
        raise NotOffered(f"torch.compile: {refusal}", "compile") from refusal

    def call(x: Tensor) -> Tensor:
        try:
            with answering(layer.who, f"a call under torch.compile with {backend}"):
                y: Tensor = module(x)
        except SubjectRaised as refusal:
            raise NotOffered(f"torch.compile: {refusal}", "compile") from refusal
        graphs[:] = [0] * made.count
        return y

    return call


@check(
    "contexts",
    "major",
    title="a deep copy of the adapted layer is another function, or no copy of its own",
    failure_mode="averaged weights, a frozen reference model or a second worker would change with the original",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_deepcopy(context: Context, case: Case) -> None:
    """``copy.deepcopy`` of the module computes and trains the same, with parameters of its own."""
    _copied(context, case, "a deep copy", copy.deepcopy)


@check(
    "contexts",
    "major",
    title="a pickled and unpickled layer is another function",
    failure_mode="a layer that is sent to another process, or saved whole, computes something else there",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=(*WRONG_BEFORE, "contexts.deepcopy"),
    diagnose=False,
)
def test_pickle(context: Context, case: Case) -> None:
    """What ``pickle`` makes of the module, where it takes it, computes and trains the same."""
    _copied(context, case, "a pickled copy", lambda module: pickle.loads(pickle.dumps(module)))


def _copied(context: Context, case: Case, what: str, make: Callable[[nn.Module], nn.Module]) -> None:
    layer = contexts.with_live_gradients(far_layer(context, case))
    wanted = observe(layer, case)
    at = contexts.places(layer)
    try:
        with answering(layer.who, f"making {what} of the module"):
            module = make(layer.module)
    except SubjectRaised as refusal:
        raise NotOffered(f"{what} of the module: {refusal}", what.split()[1]) from refusal
    replica = contexts.counterpart(layer, module, at)
    same(context, case, f"of {what}", observe(replica, case), wanted)
    other = contexts.elsewhere(case, 1)
    layer.write(contexts.parameters(layer, other))
    same(context, case, f"of {what} after the original was changed", observe(replica, case), wanted)
    changed = observe(layer, other)
    replica.write(contexts.parameters(replica, contexts.elsewhere(case, 2)))
    same(context, other, f"of the original after {what} was changed", observe(layer, other), changed)


@check(
    "contexts",
    "major",
    title="what the module's state dict brings to a twin is another function",
    failure_mode="training that is resumed from a state dict goes on with another adapter",
    domain=SMALL,
    against=("paper",),
    examples=EXAMPLES,
    follows=(*WRONG_BEFORE, "save_load.round_trip", "save_load.other_base"),
    diagnose=False,
)
def test_state_dict(context: Context, case: Case) -> None:
    """``twin.load_state_dict(layer.state_dict())`` makes of a fresh layer on the same base the one that was saved."""
    layer, twin = far_layer(context, case), context.layer(case, 1)
    _change_buffers(context, case, layer)
    wanted = observe(layer, case)
    with answering(layer.who, "load_state_dict of a twin's state_dict"):
        # Not strict: a library may keep the base out of its state.
        twin.module.load_state_dict(layer.module.state_dict(), strict=False)
    with passed_by(layer, case.x):
        same(context, case, "of a twin with the state dict", observe(twin, case), wanted, 2.0)


def _change_buffers(context: Context, case: Case, layer: Layer) -> None:
    """Other values in the buffers, as an adapter that was made on another base has them."""
    generator = case.generator(4)
    for tensor in [t for t in context.variant.tensors if t.role == "buffer" and t.name in layer.names]:
        value = layer.value(tensor.name)
        layer.write({tensor.name: value * (1.5 + torch.rand(value.shape, generator=generator).double())})


@check(
    "contexts",
    "major",
    title="after .to(bfloat16) and back the layer loses more than its parameters' digits",
    failure_mode="a model that was moved through half precision computes another function than its parameters say",
    domain=CAST,
    against=("paper",),
    examples=EXAMPLES,
    follows=WRONG_BEFORE,
    diagnose=False,
)
def test_cast_and_back(context: Context, case: Case) -> None:
    """After ``.to(bfloat16).to(float32)`` the layer is a fresh one with the rounded parameters, on the rounded base."""
    layer = far_layer(context, case)
    if any(t.role == "base" and t.name not in layer.names for t in context.variant.tensors):
        raise OutsideDomain("the rounded base weight that the adapter adds to is not shown")
    if context.variant.base is None and not _is_held(layer, case.weight):
        raise OutsideDomain(
            "the layer does not hold the base weight as it is: how that is rounded is not known"
        )
    at = contexts.places(layer)
    with answering(layer.who, "module.to(bfloat16).to(float32)"):
        module = layer.module.to(torch.bfloat16).to(case.torch_dtype)
    moved = contexts.counterpart(layer, module, at)
    if set(moved.names) != set(layer.names):
        raise OutsideDomain("a slot's tensor is no tensor of the module: what became of it is not known")
    rounded = _rounded(case)
    fresh = context.layer(rounded)
    fresh.write({n: v for n, v in moved.values().items() if not _is_constant(context, moved, n)})
    same(
        context,
        rounded,
        "after .to(bfloat16).to(float32)",
        observe(moved, rounded),
        observe(fresh, rounded),
        2.0,
    )


def _is_held(layer: Layer, weight: Tensor) -> bool:
    """Whether one of the module's tensors is the weight, in either layout."""
    held = [t.detach() for t in contexts.tensors(layer.module).values()]
    return any(t.shape == w.shape and torch.equal(t, w) for t in held for w in (weight, weight.mT))


def _is_constant(context: Context, layer: Layer, name: str) -> bool:
    """Whether a slot is a single number that neither trains nor belongs to the method: a scale, say."""
    tensor = layer.raw(name)
    return tensor.numel() == 1 and not tensor.requires_grad and context.variant.tensor(name) is None


def _rounded(case: Case) -> Case:
    """The same case on the base whose weight and bias went through bfloat16."""
    other = case.but()
    bias = None if case.bias_vector is None else _through_half(case.bias_vector)
    vars(other).update(
        weight=_through_half(case.weight), bias_vector=bias, input=case.input, cotangent=case.cotangent
    )
    return other


def _through_half(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype)

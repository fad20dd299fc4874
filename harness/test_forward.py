"""Forward: the function itself, at the start and far from it, its gradients, and what a layer must not do."""

from __future__ import annotations

import dataclasses
import functools
from typing import NoReturn

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import in_one_state, rounding
from harness.compare.context import Context, CutDown, Pair, Refused, Singular, Worst
from harness.compare.lacking import has_shape, nothing_lacks
from harness.compare.layer import Layer, SubjectRaised, answering
from harness.compare.outcome import Deviation, NotOffered, OutsideDomain, ToldElsewhere
from harness.compare.probing import by_rows, effective, far_layer, mode_is_ignored
from harness.compare.thresholds import SAME_FUNCTION
from harness.engine.checks import check
from oracles.implementation import AdapterSpec
from reports.model import Diagnosis

EDGES = Domain(dtypes=("float32",), sizes=(1, 4), ranks=(5, 8))
BATCHES: tuple[tuple[int, ...], ...] = ((4,), (2, 3), (2, 1, 3), (0,), (2, 0))


@check(
    "forward",
    "critical",
    title="the output at the start is not the reference's",
    failure_mode="the model is another one before the first step",
    follows=("forward.random_parameters",),
)
def test_at_init(context: Context, case: Case) -> None:
    """At the subject's own start the output equals the reference's at those parameters."""
    context.compare(context.pair(case, "initial"))


@check(
    "forward",
    "critical",
    title="the output is not the reference's",
    failure_mode="the same parameters give another model; a checkpoint from elsewhere would be another model here",
)
def test_random_parameters(context: Context, case: Case) -> None:
    """At parameters far from their start the output equals the reference's: y = f(x; W, b, θ)."""
    context.compare(context.pair(case, "far"))


GUARD = Diagnosis(
    "forward.guard",
    "norms near zero are guarded otherwise than in PEFT",
    "the first steps of a start near zero have another size",
    agrees_with="the references, which differ here themselves: PEFT clamps the norms at 1e-4, the author does not",
    documented_by=("clamp", "epsilon", r"\beps\b", "guard"),
    severity="minor",
    remedy="guard the norms as the reference does that the docstring names",
)


@check(
    "forward",
    "minor",
    title="near zero the parameters give another output than the reference",
    failure_mode="a guard on a norm that is missing, or larger than the reference's, would decide the first steps",
    against=("peft", "paper"),
    examples=4,
    applies=lambda variant: variant.guards_norms,
    follows=("forward.random_parameters",),
    diagnose=False,
)
def test_small_parameters(context: Context, case: Case) -> None:
    """At factors a millionth of those far from their start the output equals the reference's."""
    pair = context.pair(case, "far")
    far = case.far(dict.fromkeys(pair.ours.names))
    factors = {t.name for t in context.variant.tensors if t.factor}
    small = {name: value * 1e-6 if name in factors else value for name, value in far.items()}
    pair.ours.write(small)
    pair.theirs.write({name: pair.ours.value(name) for name in small})
    try:
        context.compare(pair)
    except Deviation as found:
        found.diagnosis = GUARD  # no reference can be wrong on this: they differ among themselves
        raise


@check(
    "forward",
    "critical",
    title="the gradients of the parameters are not the reference's",
    failure_mode="training follows another trajectory",
    follows=("forward.random_parameters",),
)
def test_gradients(context: Context, case: Case) -> None:
    """Far from the start, ∂⟨G, y⟩ of every parameter equals the reference's."""
    pair = context.pair(case, "far")
    context.compare(pair, gradients=True, only=[f"gradient of {n}" for n in pair.trainable])


@check(
    "forward",
    "critical",
    title="the gradient that is passed down to the input is not the reference's",
    failure_mode="layers below the adapted one would be trained wrongly",
    follows=("forward.random_parameters",),
)
def test_input_gradient(context: Context, case: Case) -> None:
    """Far from the start, ∂⟨G, y⟩/∂x equals the reference's."""
    context.compare(context.pair(case, "far"), gradients=True, only=["gradient of x"])


@check(
    "forward",
    "critical",
    title="the layer's effective weight or bias is not the reference's",
    failure_mode="the same parameters give another model",
    follows=("forward.random_parameters",),
)
def test_effective_weight(context: Context, case: Case) -> None:
    """Probed with the identity and with zero, the layer's W' and b' equal the reference's."""
    pair = context.pair(case, "far")
    ours, theirs = effective(pair.ours, case), effective(pair.theirs, case, torch.float64)
    noise = functools.cache(lambda: context.effective_noise(pair))
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    sizes = [unit * float(torch.linalg.vector_norm(t)) for t in theirs]
    # The probe takes W' as a difference to b', so b' is rounded into it.
    context.judge(
        case, "effective weight", ours[0], theirs[0], sizes[0], noise=lambda: sum(noise().values()) * 2
    )
    amplified = functools.cache(lambda: noise()["effective bias"] * context.amplification(case))
    context.judge(case, "effective bias", ours[1], theirs[1], sizes[1], noise=amplified)


ROWS = Diagnosis(
    "forward.rows",
    "a row of a batch is answered otherwise than alone",
    "what a token's output is depends on the other samples that happen to be in its batch",
    remedy="compute each row from itself alone: no statistics and no norm over the batch's dimensions",
)


@check(
    "forward",
    "critical",
    title="the layer is not affine in its input",
    failure_mode="no weight and bias compute what it computes, so that it cannot be merged",
    against=("paper",),
    follows=("forward.random_parameters",),
    diagnose=False,
)
def test_linear(context: Context, case: Case) -> None:
    """y(2x − z) = 2y(x) − y(z), and every row of a batch is answered alone."""
    layer = far_layer(context, case)
    z = case.x.flip(-1)
    with torch.no_grad():
        combined = layer(2 * case.x - z).double()
        parts = 2 * layer(case.x).double() - layer(z).double()
        rows = case.x.reshape(-1, 1, case.in_features)
        alone = torch.cat([by_rows(layer, case, row).double() for row in rows])
        batch = layer(case.x).double()
    _same(context, case, "y(2x − z) against 2y(x) − y(z)", combined, parts, 4.0)
    try:
        _same(context, case, "rows of a batch alone", alone.reshape(batch.shape), batch, 1.0)
    except Deviation as found:
        found.diagnosis = ROWS
        raise


def _same(context: Context, case: Case, what: str, actual: Tensor, exact: Tensor, growth: float) -> None:
    """Two outputs of the subject's own; another order of summation is all that may differ."""
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    operands = float(torch.linalg.vector_norm(case.x.double())) * float(
        torch.linalg.matrix_norm(case.weight.double())
    )
    bias = 0.0 if case.bias_vector is None else float(torch.linalg.vector_norm(case.bias_vector.double()))
    own = float(torch.linalg.vector_norm(exact))

    def amplified() -> float:
        return unit * growth * (own + (operands + bias) * context.amplification(case))

    context.judge(case, what, actual, exact, unit * growth * own, noise=amplified)


@check(
    "forward",
    "major",
    title="inputs of some shapes or layouts are answered differently, or not at all",
    failure_mode="a model that feeds such tensors would break, or compute something else",
    against=("paper",),
    examples=4,
    diagnose=False,
)
def test_batch_shapes(context: Context, case: Case) -> None:
    """x of two to four dimensions, empty batches and non-contiguous x give what the rows alone give."""
    layer = far_layer(context, case)
    with torch.no_grad():  # of another shape whatever the input's, it is another matter
        rounding.of_the_layers_shape(layer, case, layer(case.x), case.x)
    for batch in (b for b in BATCHES if len(b) + 1 in context.abilities.inputs):
        shaped = case.but(batch=batch)
        with torch.no_grad():
            y = layer(shaped.x)
            wanted = (*batch, case.out_features)
            context.demand(
                tuple(y.shape) == wanted,
                shaped,
                f"shape of y for x {tuple(shaped.x.shape)}",
                wanted,
                tuple(y.shape),
            )
            rows = by_rows(layer, case, shaped.x.reshape(-1, case.in_features))
        _same(
            context,
            shaped,
            f"x of shape {tuple(shaped.x.shape)}",
            y.double(),
            rows.double().reshape(wanted),
            1.0,
        )
    with torch.no_grad():
        strided = torch.stack([case.x, case.x], dim=-1)[..., 0]
        transposed = case.x.transpose(0, -1).contiguous().transpose(0, -1)
        for what, x in (("strided", strided), ("transposed", transposed)):
            _same(context, case, f"non-contiguous x ({what})", layer(x).double(), layer(case.x).double(), 1.0)
        if 3 not in context.abilities.inputs:
            return
        swapped = case.but(batch=(2, 3))
        y, rows = layer(swapped.x.transpose(0, 1)), layer(swapped.x).transpose(0, 1)
        _same(context, swapped, "non-contiguous x (batch dimensions swapped)", y.double(), rows.double(), 1.0)


@check(
    "forward",
    "major",
    title="an input without batch dimensions is answered differently, or not at all",
    failure_mode="a vector that goes through the layer raises, or comes out with another number of dimensions",
    against=("peft", "paper"),
    examples=2,
    follows=("forward.inputs",),
    diagnose=False,
)
def test_one_dimension(context: Context, case: Case) -> None:
    """x of one dimension, (in,), gives (out,): the row that a batch of one gives."""
    if 1 not in context.subject.inputs:
        raise NotOffered("the subject's `inputs` leaves out x of one dimension", "inputs")
    for bias in (False, True):
        alone = context.abilities.fitted(case.but(bias=bias)).but(batch=())
        try:
            _as_a_row(context, alone)
        except SubjectRaised as found:
            found.case = alone
            raise


def _as_a_row(context: Context, alone: Case) -> None:
    layer, theirs = far_layer(context, alone), context.reference(alone)
    with torch.no_grad():
        y, wanted = layer(alone.x), theirs(alone.x)
        has_shape(alone, f"x {tuple(alone.x.shape)}", tuple(y.shape), tuple(wanted.shape))
        row = by_rows(layer, alone, alone.x[None])[0]
    _same(context, alone, "x of one dimension", y.double().reshape(row.shape), row.double(), 1.0)


@check(
    "forward",
    "minor",
    title="a rank above min(in, out) is refused, cut down or answered wrongly",
    failure_mode="small layers of a model cannot be adapted at a rank that the reference takes",
    domain=EDGES,
    examples=4,
    against=("peft", "paper"),
    applies=lambda variant: variant.has_rank and variant.base is None,
    follows=("forward.random_parameters", "dtype.forward"),
)
def test_edge_ranks(context: Context, case: Case) -> None:
    """A rank above min(in, out) works as in the reference."""
    try:
        pair = context.pair(case, "far")
    except Singular:
        raise
    except Refused as why:
        lower = min(case.in_features, case.out_features)
        # If an ordinary rank raises as well, it is no matter of the rank.
        context.layer(context.abilities.fitted(case.but(rank=min(lower, 2))))
        got = f"one of rank {lower}" if isinstance(why, CutDown) else "refused"
        context.demand(False, case, f"adapt with rank {case.spec.rank}", "an adapter, as the reference", got)
        return
    context.compare(pair)


@check(
    "forward",
    "major",
    title="at an odd rank the layer computes another function than the equation",
    failure_mode="of an adapter of an odd rank another chain acts than the one that was trained elsewhere",
    domain=Domain(dtypes=("float32",), sizes=(4, 9)),
    examples=3,
    against=("paper",),
    applies=lambda variant: variant.may_refuse(AdapterSpec(variant.id, rank=3)),
    follows=("forward.random_parameters",),
    diagnose=False,
    may_refuse=True,
)
def test_odd_rank(context: Context, case: Case) -> None:
    """At a rank that no start makes the base of, where it is taken, the output is the equation's all the same."""
    try:
        pair = context.pair(case.but(rank=case.spec.rank + 1), "far")
    except Singular:
        raise
    except Refused as why:
        raise OutsideDomain("odd ranks are refused, as they may be") from why
    context.compare(pair)


@check(
    "forward",
    "critical",
    title="in one of its modes the layer computes another function than the reference",
    failure_mode="a checkpoint of this mode from elsewhere would be another model here",
    follows=("forward.random_parameters",),
    modes=True,
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode, output and gradients far from the start equal the reference's."""
    if mode_is_ignored(context, case):
        raise ToldElsewhere("the mode is ignored, which shapes.modes reports", "shapes.modes")
    context.compare(context.pair(case, "far"), gradients=True)


OVERWRITES = Diagnosis(
    "forward.overwrites_input",
    "calling the layer has side effects: it overwrites its input",
    "what the caller computes from x after the call is computed from other numbers",
    remedy="compute on a new tensor, not in place on x",
)
DRAWS = Diagnosis(
    "forward.draws",
    "calling the layer has side effects: without dropout, too, it changes the state of torch's generator",
    "what is drawn after a call is drawn otherwise than without it: runs of one seed differ by the calls in between",
    remedy="leave torch's generator alone in a call in which nothing is dropped",
)
TAKES_AWAY = Diagnosis(
    "forward.takes_away",
    "calling the layer has side effects: tensors are no longer among its parameters and buffers",
    "who goes through the layer's parameters and buffers after a call (a checkpoint, a cast, an optimizer) does not "
    "find {}",
    remedy="leave the parameter where it is, and compute the weight that is used in a variable beside it",
)
CHANGES = Diagnosis(
    "forward.changes_tensors",
    "calling the layer has side effects: it changes its own tensors",
    "what is saved or trained on after a call is not what was there before it",
    remedy="leave the layer's tensors as they are in a call",
)
REPLACES = Diagnosis(
    "forward.replaces_parameters",
    "calling the layer has side effects: it puts new parameters in the place of its own",
    "an optimiser that was made before the call trains parameters that act no more",
    remedy="change the parameter's values in place, or compute what is needed beside it",
)
DEPENDS = Diagnosis(
    "forward.depends_on_calls",
    "calling the layer has side effects: the same call twice gives two outputs",
    "results depend on what was called before, or on chance",
    remedy="compute each call from its input and the layer's tensors alone",
)


@check(
    "forward",
    "major",
    title="calling the layer has side effects",
    failure_mode="the layer is another one after a call, or its caller's tensors are",
    against=("paper",),
    examples=4,
    diagnose=False,
)
def test_pure(context: Context, case: Case) -> None:
    """A call changes neither its input, nor the adapter or the base, nor torch's generator; twice is the same."""
    _pure(context, case)


@check(
    "forward",
    "major",
    title="in one of its modes calling the layer has side effects",
    failure_mode="the layer is another one after a call, or its caller's tensors are",
    against=("paper",),
    examples=4,
    modes=True,
    follows=("forward.pure", "shapes.modes"),
    diagnose=False,
)
def test_pure_modes(context: Context, case: Case) -> None:
    """In each mode, a call changes neither input, adapter, base nor torch's generator; twice is the same."""
    _pure(context, case)


def _pure(context: Context, case: Case) -> None:
    _keeps_its_parameters(context.layer(case), case)
    layer = far_layer(context, case)
    held = {n: t.detach().clone() for n, t in _state(layer).items()}
    x, generator = case.x, torch.get_rng_state()
    first = layer(x).detach().clone()
    drew = not torch.equal(generator, torch.get_rng_state())
    kept = _equal(x, case.x)
    second = layer(x if kept else case.x).detach()
    steady = drew or rounding.same_values(first, second)  # what is drawn differs without any state
    if not kept:
        _effect(case, "the input after a call", "unchanged", "changed", OVERWRITES, steady)
    if drew and case.spec.dropout == 0:  # else it is the nearest to none that the subject can express
        what = "torch's generator after a call without dropout"
        _effect(case, what, "unchanged", "changed", DRAWS, steady)
    _kept(case, held, _state(layer), steady)
    if not steady:
        _effect(case, "the same call twice", "equal", "different", DEPENDS, True)
    if "bfloat16" in context.abilities.dtypes:
        _leaves_its_input(context, case.but(dtype="bfloat16"))


def _keeps_its_parameters(layer: Layer, case: Case) -> None:
    """At the start, too, where a library may still make something, the parameters are the same objects after a call."""
    before = dict(layer.module.named_parameters())
    layer(case.x)
    now = dict(layer.module.named_parameters())
    other = [n for n, p in before.items() if n in now and now[n] is not p]
    if other:
        what = "parameters that are other objects after a call"
        raise Deviation(case, what, "none", ", ".join(other), diagnosis=REPLACES)


def _leaves_its_input(context: Context, case: Case) -> None:
    """In a dtype that the layer computes in, too, where no cast makes a copy of x."""
    x = case.x
    try:
        far_layer(context, case)(x)
    except SubjectRaised as found:
        found.case = case
        raise
    if not _equal(x, case.x):
        _effect(case, "the input after a call", "unchanged", "changed", OVERWRITES, True)


def _kept(case: Case, held: dict[str, Tensor], now: dict[str, Tensor], steady: bool) -> None:
    """Raise Deviation where tensors are gone after a call, or have other values."""
    if gone := ", ".join(n for n in held if n not in now):
        told = dataclasses.replace(TAKES_AWAY, failure_mode=TAKES_AWAY.failure_mode.format(gone))
        what = "parameters and buffers that are gone after a call"
        _effect(case, what, "none", gone, told, steady)
    changed = [n for n, t in now.items() if n in held and not rounding.same_values(t, held[n])]
    if changed:
        _effect(case, "tensors changed by a call", "none", ", ".join(changed), CHANGES, steady)


def _effect(case: Case, quantity: str, expected: str, actual: str, told: Diagnosis, steady: bool) -> NoReturn:
    """Raise Deviation with what was seen; that results depend on earlier calls is said where they did."""
    failure = told.failure_mode if steady else f"{told.failure_mode}; {DEPENDS.failure_mode}"
    raise Deviation(
        case, quantity, expected, actual, diagnosis=dataclasses.replace(told, failure_mode=failure)
    )


def _equal(actual: Tensor, expected: Tensor) -> bool:
    return actual.dtype == expected.dtype and rounding.same_values(actual, expected)


def _state(layer: Layer) -> dict[str, Tensor]:
    tensors = dict(layer.module.named_parameters()) | dict(layer.module.named_buffers())
    return tensors | {f"slot {n}": layer.view(n) for n in layer.names}


CHANGED_BY_EVALUATING = Diagnosis(
    "forward.changed_by_evaluating",
    "evaluating changes the layer: back in training mode it computes another function than before",
    "each evaluation during training leaves another model than the one that was trained",
    remedy="leave the tensors as they were when training mode comes back: undo exactly what evaluation mode did",
)


ASKED_TWICE = Diagnosis(
    "forward.mode_asked_twice",
    "each call of eval() or train() acts, also where the layer is in that mode already",
    "who evaluates a model that is in evaluation mode already gets, and goes on with, another one",
    remedy="do in train() and eval() only what a change of mode asks for: look at the present one first",
)


@check(
    "forward",
    "critical",
    title="without dropout, training mode and evaluation mode compute different functions",
    failure_mode="an evaluation would be of another function than the one that was trained",
    against=("paper",),
    examples=4,
    follows=("forward.base_kept",),
    diagnose=False,
)
def test_eval_mode(context: Context, case: Case) -> None:
    """Without dropout the layer computes the same in training and evaluation mode, there and back, asked twice too."""
    layer = far_layer(context, case)
    layer.train()
    trained = layer(case.x).detach().double()
    layer.train(False)
    with torch.no_grad():
        evaluated = layer(case.x).double()
    layer.train()
    again = layer(case.x).detach().double()
    try:
        _same(context, case, "output in evaluation mode", evaluated, trained, 1.0)
    except Deviation as found:
        if _is_the_equations(context, case, layer, evaluated):
            why = "evaluation mode computes the equation, and training mode something else"
            raise ToldElsewhere(why, "forward.random_parameters") from found
        found.diagnosis = in_one_state.explain_evaluated(context, case)
        raise
    try:
        _same(context, case, "output back in training mode", again, trained, 1.0)
    except Deviation as found:
        found.diagnosis = CHANGED_BY_EVALUATING
        raise
    _told_twice(context, case, layer, trained)


def _is_the_equations(context: Context, case: Case, layer: Layer, y: Tensor) -> bool:
    """Whether an output is that of the equation at the layer's parameters."""
    theirs = context.evaluator(case)
    theirs.write(layer.values())
    try:
        _same(dataclasses.replace(context, worst=Worst()), case, "", y, theirs(case.x.double()), 1.0)
    except Deviation:
        return False
    return True


def _told_twice(context: Context, case: Case, layer: Layer, wanted: Tensor) -> None:
    """A mode that the layer is in already may be asked for again."""
    for mode, words in ((False, "eval()"), (True, "train()")):
        layer.train(mode)
        layer.train(mode)
        with torch.no_grad():
            y = layer(case.x).double()
        try:
            _same(context, case, f"output after a second {words}", y, wanted, 1.0)
        except Deviation as found:
            found.diagnosis = ASKED_TWICE
            raise


FOLDED = Diagnosis(
    "forward.folded_in_evaluation",
    "in evaluation mode no gradient reaches the adapter",
    "what takes gradients in evaluation mode (attribution, training with dropout off) would leave the adapter out",
    agrees_with="microsoft/LoRA, whose layers fold the update into the weight on eval() (merge_weights, on by default)",
    documented_by=(
        r"(fold|merge)\w* .{0,60}\beval",
        r"\beval\w*\b.{0,60}(fold|merge)",
        "no gradients? in evaluation",
    ),
    severity="minor",
    remedy="compute the adapter's branch in evaluation mode too, and fold it in only when asked to merge",
)


SPENT = "backward through the graph a second time"  # torch's words where an earlier call's graph was kept


@check(
    "forward",
    "minor",
    title="in evaluation mode no gradient reaches the adapter",
    failure_mode="what takes gradients in evaluation mode would leave the adapter out",
    against=("paper",),
    examples=2,
    follows=("forward.gradients", "forward.eval_mode", "forward.base_kept", "step0.nothing_trains"),
    diagnose=False,
)
def test_eval_gradients(context: Context, case: Case) -> None:
    """In evaluation mode, too, the output depends on the adapter's parameters for autograd, at every call anew."""
    layer = far_layer(context, case)
    layer.train()
    if not _gradients(layer, case):
        return
    with torch.no_grad():
        trained = layer(case.x)
    layer.train(False)
    for _ in range(2):  # a weight that was folded in training mode keeps that call's graph, which serves once
        if not _gradients(layer, case):
            with torch.no_grad():
                same = bool((layer(case.x) - trained).abs().max() < SAME_FUNCTION)
            raise Deviation(
                case,
                "gradients in evaluation mode",
                "those of training mode",
                "none",
                diagnosis=FOLDED,
                alone=same,  # what is folded in is what acts in training mode, whatever that is
            )


def _gradients(layer: Layer, case: Case) -> bool:
    """Whether a call's output can be differentiated, from the graph of that call alone."""
    y = layer(case.x)
    try:
        if y.requires_grad:
            with answering(layer.who, "the backward pass"):
                y.sum().backward()
    except SubjectRaised as error:
        if SPENT not in str(error):
            raise
        return False
    return y.requires_grad


NO_MODULE = Diagnosis(
    "forward.no_module",
    "train() and eval() do not give the module back",
    "model = layer.eval(), as torch's own layers allow it, would leave the caller without the layer",
    agrees_with="microsoft/LoRA's loralib, whose train() returns nothing",
    documented_by=(r"returns? (nothing|None)", "no return value"),
    severity="minor",
    remedy="end the layer's own train and eval with return self",
)


NOT_SWITCHED = Diagnosis(
    "forward.not_switched",
    "train() and eval() leave the layer's own flag as it was",
    "whoever asks the layer for its mode, as torch's functions and other libraries do, is told the wrong one",
    severity="minor",
    remedy="call super().train(mode) in the layer's own train",
)


@check(
    "forward",
    "minor",
    title="train() and eval() do not give the module back",
    failure_mode="model = layer.eval(), as torch's own layers allow it, would leave the caller without the layer",
    domain=EDGES,
    against=("paper",),
    examples=1,
    diagnose=False,
)
def test_mode_answer(context: Context, case: Case) -> None:
    """``layer.train()``, ``layer.train(False)`` and ``layer.eval()`` return the layer, which is in that mode."""
    module = context.layer(case).module
    for name, call in {
        "train()": module.train,
        "train(False)": lambda: module.train(False),
        "eval()": module.eval,
    }.items():
        with answering(context.subject.name, name):
            answer = call()
        if answer is not module:
            raise Deviation(
                case, f"what {name} returns", "the module", type(answer).__name__, diagnosis=NO_MODULE
            )
        wanted, flag = name == "train()", module.training
        if flag != wanted:
            raise Deviation(case, f"training after {name}", str(wanted), str(flag), diagnosis=NOT_SWITCHED)


@check(
    "forward",
    "critical",
    title="evaluation mode changes the base weight for good",
    failure_mode="each evaluation leaves the base further from where it was, and what is trained afterwards is another "
    "model",
    against=("paper",),
    examples=4,
    diagnose=False,
)
def test_base_kept(context: Context, case: Case) -> None:
    """After evaluating and going back to training mode, three times over, the base weight and bias are as before.

    Up to rounding, since a weight that is folded in and taken out again may lose its last digit.
    """
    layer = far_layer(context, case)
    layer.train()
    before = {n: t.detach().double().clone() for n, t in _outside(layer).items()}
    for _ in range(3):
        layer.train(False)
        with torch.no_grad():
            layer(case.x)
        layer.train()
    after = _outside(layer)
    size = float(torch.linalg.matrix_norm(case.weight.double()))
    weight = torch.cat([effective(layer, case)[0], case.weight.double()])
    unit = rounding.roundoff(case.torch_dtype) * (size + float(torch.linalg.matrix_norm(weight)))
    for name in [n for n in before if n in after and after[n].shape == before[n].shape]:
        context.judge(case, f"{name} after three evaluations", after[name].double(), before[name], unit)


def _outside(layer: Layer) -> dict[str, Tensor]:
    """The layer's tensors that are no slot's: the base's, whatever the subject calls them."""
    slots = {layer.raw(name).untyped_storage().data_ptr() for name in layer.names}
    state = dict(layer.module.named_parameters()) | dict(layer.module.named_buffers())
    return {
        n: t
        for n, t in state.items()
        if t.is_floating_point() and t.untyped_storage().data_ptr() not in slots
    }


@check(
    "forward",
    "critical",
    title="after its parameters have changed the layer still computes with the old ones",
    failure_mode="evaluations between epochs, and what is deployed afterwards, would be those of an earlier model",
    against=("paper",),
    examples=4,
    follows=("forward.random_parameters", "forward.eval_mode", "forward.base_kept"),
    diagnose=False,
)
def test_stale_weights(context: Context, case: Case) -> None:
    """Trained and evaluated in turns, with other parameters each time (all of them, then each alone), the layer
    computes what a fresh one with the present parameters computes."""
    layer, fresh = far_layer(context, case), far_layer(context, case)
    for turn, names in enumerate([layer.names, *([name] for name in layer.names)], start=1):
        values = case.but(seed=case.seed + turn).far(dict.fromkeys(names))
        layer.train()
        for each in (layer, fresh):
            each.write(values)
        wanted = _anew(context, case, fresh)
        for training in (True, False):
            layer.train(training)
            with torch.set_grad_enabled(training):
                _same(context, case, "output", layer(case.x).detach().double(), wanted, 1.0)


def _anew(context: Context, case: Case, at: Layer) -> Tensor:
    """The output of a layer that has had no other parameters than those of ``at``."""
    layer = context.layer(case)
    layer.write(at.values())
    return layer(case.x).detach().double()


RECOMPUTED = Diagnosis(
    "forward.recomputed",
    "what the adapter keeps of the base weight is taken from the weight anew at every call",
    "on a base that differs from the one it was trained on (another checkpoint, a quantised or merged weight) the same "
    "adapter gives another update",
    agrees_with="the author's code, which takes ‖W‖ from the present weight at every call",
    documented_by=("recomput", "anew", "at every (call|forward)", "(current|present) weight"),
    severity="minor",
    remedy="keep the quantity as a buffer from the moment that the adapter is made, and save it with the adapter",
)


@check(
    "forward",
    "minor",
    title="with other values in its buffers the layer does not compute what the reference does with them",
    failure_mode="what is saved in the checkpoint is not what the layer computes with",
    against=("peft", "paper"),
    examples=4,
    applies=lambda variant: any(t.role == "buffer" for t in variant.tensors),
    follows=("forward.random_parameters", "shapes.canonical", "shapes.roles"),
    diagnose=False,
)
def test_buffers(context: Context, case: Case) -> None:
    """With other values in its buffers (DeLoRA's w_norm) the layer computes with those, as the reference does."""
    pair = context.pair(case, "far")
    buffers = [t.name for t in context.variant.tensors if t.role == "buffer"]
    held = [n for n in buffers if n in pair.ours.names and _same_shape(pair, n)]
    if not held:
        raise ToldElsewhere(
            "the subject has no such buffer, which shapes.canonical reports", "shapes.canonical"
        )
    context.compare(pair)  # a formula that is wrong already is no matter of buffers
    before = pair.ours(case.x).detach()
    generator = case.generator(4)
    for name in held:
        value = pair.ours.value(name)
        pair.ours.write(
            {name: value * (1.5 + torch.rand(value.shape, generator=generator, dtype=value.dtype))}
        )
        pair.theirs.write({name: pair.ours.value(name)})
    try:
        context.compare(pair)
    except Deviation as found:
        found.diagnosis = RECOMPUTED if torch.equal(pair.ours(case.x).detach(), before) else None
        raise


def _same_shape(pair: Pair, name: str) -> bool:
    return pair.ours.view(name).shape == pair.theirs.view(name).shape


@check(
    "forward",
    "major",
    title="inputs of some numbers of dimensions are not taken",
    failure_mode="a model that feeds such tensors would break, or compute something else",
    against=("paper",),
    examples=1,
    diagnose=False,
)
def test_inputs(context: Context, case: Case) -> None:
    """x of two to five dimensions is taken."""
    nothing_lacks(context, "input")

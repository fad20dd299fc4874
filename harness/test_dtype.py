"""Dtypes: the output's dtype, and how many digits each base dtype keeps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, Pair, double, plain
from harness.compare.lacking import nothing_lacks
from harness.compare.layer import Layer, answering
from harness.compare.outcome import Deviation, OutsideDomain, ToldElsewhere
from harness.compare.probing import coefficient, far_layer, without_adapter
from harness.compare.thresholds import MOVED_SHARE
from harness.engine.checks import check
from reports.model import Diagnosis

HALF = ("bfloat16", "float16")
EVERY = Domain(dtypes=("float32", "bfloat16", "float16", "float64"))
DIGITS = Domain(dtypes=("float32", "bfloat16", "float16"), sizes=(6, 16), ranks=(2, 8), batches=((32,),))
DOUBLE = Domain(dtypes=("float64",), sizes=(6, 16), ranks=(2, 8), batches=((8,),))


@check(
    "dtype",
    "major",
    title="the output has another dtype than the reference's",
    failure_mode="in a half-precision model the next layer would raise, or promote",
    domain=EVERY,
)
def test_output(context: Context, case: Case) -> None:
    """The output's dtype is the reference's for every base dtype."""
    _output_dtype(context, case)


@check(
    "dtype",
    "major",
    title="in one of its modes the layer refuses a base dtype, or answers in another dtype than the reference",
    failure_mode="in a half-precision model this layer, or the next one, would raise",
    domain=EVERY,
    modes=True,
    follows=("dtype.output", "shapes.modes"),
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode, the output's dtype is the reference's for every base dtype."""
    _output_dtype(context, case)


def _output_dtype(context: Context, case: Case) -> None:
    ours, theirs = context.layer(case), context.reference(case)
    with torch.no_grad():
        actual, wanted = ours(case.x).dtype, theirs(case.x).dtype
    context.demand(actual == wanted, case, f"dtype of y for {case.dtype} x and base", wanted, actual)


@check(
    "dtype",
    "critical",
    title="in half precision the adapted layer does not start as the base layer",
    failure_mode="the model is another one before the first step, in the dtype it is trained in",
    domain=Domain(dtypes=HALF, sizes=(2, 16)),
    against=("paper",),
    follows=("init.identity", "forward.at_init"),
)
def test_identity(context: Context, case: Case) -> None:
    """In bf16 and fp16 the output at step 0 is the base layer's, up to rounding in that dtype."""
    if not context.variant.starts_at_identity(case.spec):
        raise OutsideDomain("the reference does not start at the identity")
    ours = context.layer(case)
    exact = plain(case.base(torch.float64), case.x.double())
    context.judge(
        case,
        "output at step 0",
        rounding.observe(ours, case)["output"],
        exact,
        rounding.identity_noise(case, exact),
        "precision",
    )


@check(
    "dtype",
    "major",
    title="the contribution loses digits, or is off by a factor too small for the formula checks",
    failure_mode="the adapter is applied slightly wrongly everywhere, or rounded more than the dtype asks for",
    domain=DIGITS,
    follows=("forward.random_parameters", "scale.effective", "forward.at_init"),
)
def test_forward(context: Context, case: Case) -> None:
    """In fp32, bf16 and fp16 the output is right to the dtype's rounding, and the contribution's factor is one."""
    pair = context.pair(case, "far")
    _digits(context, pair, case.torch_dtype)


SINGLE = Diagnosis(
    "dtype.single_precision",
    "with a float64 base the layer keeps fewer digits than float64 has",
    "double precision is asked for and not delivered, or an epsilon is added somewhere",
    agrees_with="the references' own training, none of which is in float64",
    documented_by=("single precision", "float32", "fp32"),
    severity="minor",
    remedy="compute in the dtype of the parameters, without a cast to float32 and without an epsilon in a denominator",
)


@check(
    "dtype",
    "critical",
    title="with a float64 base the output is not the reference's",
    failure_mode="the same parameters give another model",
    domain=DOUBLE,
    follows=("forward.random_parameters", "scale.effective", "dtype.forward"),
)
def test_double(context: Context, case: Case) -> None:
    """With a float64 base the output is right to float64's rounding."""
    if case.dtype in context.variant.refuses_dtypes:
        raise OutsideDomain(
            f"the reference refuses to start {context.variant.title} from a {case.dtype} base"
        )
    pair = context.pair(case, "far")
    actual = rounding.observe(pair.ours, case)["output"]
    exact = rounding.observe(pair.theirs, double(case))["output"]
    floor = rounding.roundoff(torch.float64) * float(torch.linalg.vector_norm(exact))
    noise = functools.cache(lambda: context.noise(pair, unit=torch.float64)["output"])
    try:
        context.judge(case, "output", actual, exact, floor, "double", noise=noise)
    except Deviation as found:
        # Right to float32's rounding, it is a choice of precision; further off, another function.
        single = functools.cache(lambda: context.noise(pair)["output"])
        as_single = rounding.roundoff(torch.float32) * float(torch.linalg.vector_norm(exact))
        context.judge(case, "output", actual, exact, as_single, "formula", noise=single)
        found.diagnosis = SINGLE
        raise


def _digits(context: Context, pair: Pair, dtype: torch.dtype) -> None:
    case = pair.case
    actual = rounding.observe(pair.ours, case)["output"]
    exact = rounding.observe(pair.theirs, double(case))["output"]
    base = without_adapter(case, pair.theirs.values())

    def both(point: rounding.Point) -> rounding.Quantities:
        y = rounding.evaluate(context.forward, point, [], False)["output"]
        # What storing y in the dtype does: one more rounding per entry, which averages out in the coefficient.
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype) * rounding.roundoff(dtype)
        stored = y + noise * y if point is not pair_point else y
        return {
            "output": y,
            "coefficient": torch.tensor(coefficient(stored - base, exact - base), dtype=torch.float64),
        }

    generator = case.generator(6)
    pair_point = pair.point
    noise = functools.cache(lambda: rounding.noise(both, pair_point, dtype, case.generator(7)))
    unit = rounding.roundoff(dtype)
    size = unit * float(torch.linalg.vector_norm(exact))
    context.judge(case, "output", actual, exact, size, "precision", noise=lambda: noise()["output"])
    c = torch.tensor(coefficient(actual - base, exact - base), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    kind = "coefficient in half" if case.dtype in HALF else "coefficient"
    context.judge(
        case, "factor on the contribution", c, one, unit, kind, noise=lambda: noise()["coefficient"]
    )


@check(
    "dtype",
    "major",
    title="gradients in half precision are not finite, or lose more digits than the dtype asks for",
    failure_mode="training in half precision would diverge or stall",
    domain=Domain(dtypes=HALF, sizes=(3, 12), ranks=(2, 6), batches=((8,),)),
    follows=(
        "forward.gradients",
        "forward.random_parameters",
        "forward.input_gradient",
        "step0.input_gradient",
    ),
)
def test_gradients(context: Context, case: Case) -> None:
    """In bf16 and fp16 every gradient is finite and right to the dtype's rounding, far from the start."""
    pair = context.pair(case, "far")
    actual = rounding.observe(pair.ours, case, gradients=True)
    exact = rounding.observe(pair.theirs, double(case), gradients=True)
    noise = functools.cache(lambda: context.noise(pair, gradients=True, unit=case.torch_dtype))
    unit, at = rounding.roundoff(case.torch_dtype), pair.point
    for name in [f"gradient of {n}" for n in ("x", *pair.trainable)]:
        if name in actual and name in exact:
            floor = unit * rounding.floor(name, exact, at)
            measured = functools.partial(lambda n: noise()[n], name)
            context.judge(case, name, actual[name], exact[name], floor, "precision gradient", noise=measured)


STEPS, RATE = 10, 1e-4  # the usual learning rate of an adapter's training is as large or ten times as large
COARSE = Diagnosis(
    "dtype.coarse_parameters",
    "over a half-precision base the adapter's parameters are kept in half precision, where small steps are lost",
    "at learning rates as small as the references' entries of order one never move, and a GradScaler refuses float16 "
    "gradients",
    remedy="keep the adapter's parameters in float32 over a half-precision base, and cast what they compute",
    agrees_with="microsoft/LoRA, whose factors have the dtype of the weight; PEFT keeps them in float32 by default",
    documented_by=(
        r"(adapter|parameter|factor|weight|tensor)s?\W.{0,80}(dtype|precision) of the (base|weight|layer|model)",
        r"(same|base's|weight's|layer's|model's) (dtype|precision)",
        r"(half|low)\W?precision.{0,80}(lost|coarse|round|learning rate)",
    ),
)


@check(
    "dtype",
    "major",
    title="over a half-precision base small steps do not move the adapter's parameters",
    failure_mode="at learning rates as small as the references' most entries are not trained",
    domain=Domain(dtypes=HALF, sizes=(4, 9), ranks=(2, 4), batches=((4,),)),
    against=("paper",),
    examples=2,
    diagnose=False,
)
def test_small_steps(context: Context, case: Case) -> None:
    """Over a bf16 or fp16 base, ten steps of Adam with a learning rate of 1e-4 move the entries that have a gradient.

    Most of them, of each tensor: in float32 all of them move.
    """
    layer = far_layer(context, case)
    trained = [n for n in layer.names if layer.raw(n).requires_grad and layer.raw(n).is_leaf]
    if not trained or not layer(case.x).requires_grad:
        raise ToldElsewhere("no gradient reaches the adapter", "forward.gradients")
    before, wanted = layer.values(), _adam(layer, case, trained)
    for name in trained:
        moved = (layer.value(name) != before[name]) & wanted[name]
        if int(moved.sum()) < MOVED_SHARE * int(wanted[name].sum()):
            raise Deviation(
                case,
                f"entries of {name}, of order one, that {STEPS} steps of Adam with a learning rate of {RATE:g} move",
                f"most of {int(wanted[name].sum())}",
                f"{int(moved.sum())} ({name} is {layer.raw(name).dtype})",
                diagnosis=COARSE if layer.raw(name).dtype in (torch.bfloat16, torch.float16) else None,
            )


def _adam(layer: Layer, case: Case, trained: list[str]) -> dict[str, Tensor]:
    """Train on a constant cotangent; of each tensor, which entries have had a gradient in every step."""
    optimiser = torch.optim.Adam([layer.raw(name) for name in trained], lr=RATE)
    pulled = {name: torch.ones_like(layer.value(name), dtype=torch.bool) for name in trained}
    for _ in range(STEPS):
        layer.clear_gradients()
        y = rounding.of_the_layers_shape(layer, case, layer(case.x), case.x)
        with answering(layer.who, "the backward pass"):
            y.backward(case.cotangent.to(y.dtype))
        for name in trained:
            pulled[name] &= layer.gradient(name) != 0
        optimiser.step()
    layer.clear_gradients()
    return pulled


@check(
    "dtype",
    "major",
    title="a base dtype is not taken",
    failure_mode="a model in that dtype cannot be adapted",
    against=("paper",),
    examples=1,
    diagnose=False,
)
def test_taken(context: Context, case: Case) -> None:
    """Base layers and inputs in float32, bfloat16, float16 and float64 are taken."""
    nothing_lacks(context, "dtype")

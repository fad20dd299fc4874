"""Dtypes: the output's dtype, and how many digits each base dtype keeps."""

from __future__ import annotations

import functools

import torch

from harness import measure
from harness.ask import Ask, Pair, double, plain
from harness.cases import Case, Domain
from harness.outcome import Deviation, NotApplicable
from harness.registry import check
from harness.test_init import identity_noise
from harness.test_scale import coefficient, without_adapter
from reports.model import Diagnosis

HALF = ("bfloat16", "float16")
EVERY = Domain(dtypes=("float32", "bfloat16", "float16", "float64"))
DIGITS = Domain(dtypes=("float32", "bfloat16", "float16"), sizes=(6, 16), ranks=(2, 8), batches=((32,),))
DOUBLE = Domain(dtypes=("float64",), sizes=(6, 16), ranks=(2, 8), batches=((8,),))


@check(
    "dtype",
    "major",
    title="the output has another dtype than the reference's",
    failure_mode="in a half-precision model the next layer raises or silently promotes",
    domain=EVERY,
)
def test_output(ask: Ask, case: Case) -> None:
    """The output's dtype is the reference's for every base dtype."""
    _output_dtype(ask, case)


@check(
    "dtype",
    "major",
    title="in one of its modes the layer refuses a base dtype, or answers in another dtype than the reference",
    failure_mode="in a half-precision model the layer raises, or the next one does",
    domain=EVERY,
    modes=True,
    follows=("dtype.output", "shapes.modes"),
)
def test_modes(ask: Ask, case: Case) -> None:
    """In each mode, the output's dtype is the reference's for every base dtype."""
    _output_dtype(ask, case)


def _output_dtype(ask: Ask, case: Case) -> None:
    ours, theirs = ask.layer(case), ask.reference(case)
    with torch.no_grad():
        actual, wanted = ours(case.x).dtype, theirs(case.x).dtype
    ask.demand(actual == wanted, case, f"dtype of y for {case.dtype} x and base", wanted, actual)


@check(
    "dtype",
    "critical",
    title="in half precision the adapted layer does not start as the base layer",
    failure_mode="the model is another one before the first step, in the dtype it is trained in",
    domain=Domain(dtypes=HALF, sizes=(2, 16)),
    against=("paper",),
    follows=("init.identity", "forward.at_init"),
)
def test_identity(ask: Ask, case: Case) -> None:
    """In bf16 and fp16 the output at step 0 is the base layer's, up to rounding in that dtype."""
    if not ask.variant.starts_at_identity(case.spec):
        raise NotApplicable("the reference does not start at the identity")
    ours = ask.layer(case)
    exact = plain(case.base(torch.float64), case.x.double())
    ask.judge(
        case,
        "output at step 0",
        measure.observe(ours, case)["output"],
        exact,
        identity_noise(case, exact),
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
def test_forward(ask: Ask, case: Case) -> None:
    """In fp32, bf16 and fp16 the output is right to the dtype's rounding, and the contribution's factor is one."""
    pair = ask.pair(case, "far")
    _digits(ask, pair, case.torch_dtype)


SINGLE = Diagnosis(
    "dtype.single_precision",
    "with a float64 base the layer keeps fewer digits than float64 has",
    "double precision is asked for and silently not delivered, or an epsilon is added somewhere",
    matched=1,
    tried=1,
    agrees_with="the references' own training, none of which is in float64",
    documented_by=("single precision", "float32", "fp32"),
    severity="minor",
)


@check(
    "dtype",
    "critical",
    title="with a float64 base the output is not the reference's",
    failure_mode="the same parameters give another model",
    domain=DOUBLE,
    follows=("forward.random_parameters", "scale.effective", "dtype.forward"),
)
def test_double(ask: Ask, case: Case) -> None:
    """With a float64 base the output is right to float64's rounding."""
    if case.dtype in ask.variant.refuses_dtypes:
        raise NotApplicable(f"the reference refuses to start {ask.variant.title} from a {case.dtype} base")
    pair = ask.pair(case, "far")
    actual = measure.observe(pair.ours, case)["output"]
    exact = measure.observe(pair.theirs, double(case))["output"]
    floor = measure.roundoff(torch.float64) * float(torch.linalg.vector_norm(exact))
    noise = functools.cache(lambda: ask.noise(pair, unit=torch.float64)["output"])
    try:
        ask.judge(case, "output", actual, exact, floor, "double", noise=noise)
    except Deviation as found:
        # Right to float32's rounding, it is a choice of precision; further off, another function.
        single = functools.cache(lambda: ask.noise(pair)["output"])
        as_single = measure.roundoff(torch.float32) * float(torch.linalg.vector_norm(exact))
        ask.judge(case, "output", actual, exact, as_single, "formula", noise=single)
        found.diagnosis = SINGLE
        raise


def _digits(ask: Ask, pair: Pair, dtype: torch.dtype) -> None:
    case = pair.case
    actual = measure.observe(pair.ours, case)["output"]
    exact = measure.observe(pair.theirs, double(case))["output"]
    base = without_adapter(case, pair.theirs.values())

    def both(point: measure.Point) -> measure.Quantities:
        y = measure.evaluate(ask.forward, point, [], False)["output"]
        # What storing y in the dtype does: one more rounding per entry, which averages out in the coefficient.
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype) * measure.roundoff(dtype)
        stored = y + noise * y if point is not pair_point else y
        return {
            "output": y,
            "coefficient": torch.tensor(coefficient(stored - base, exact - base), dtype=torch.float64),
        }

    generator = case.generator(6)
    pair_point = pair.point
    noise = functools.cache(lambda: measure.noise(both, pair_point, dtype, case.generator(7)))
    unit = measure.roundoff(dtype)
    size = unit * float(torch.linalg.vector_norm(exact))
    ask.judge(case, "output", actual, exact, size, "precision", noise=lambda: noise()["output"])
    c = torch.tensor(coefficient(actual - base, exact - base), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    kind = "coefficient in half" if case.dtype in HALF else "coefficient"
    ask.judge(case, "factor on the contribution", c, one, unit, kind, noise=lambda: noise()["coefficient"])


@check(
    "dtype",
    "major",
    title="gradients in half precision are not finite, or lose more digits than the dtype asks for",
    failure_mode="training in half precision diverges or stalls",
    domain=Domain(dtypes=HALF, sizes=(3, 12), ranks=(2, 6), batches=((8,),)),
    follows=("forward.gradients", "forward.random_parameters"),
)
def test_gradients(ask: Ask, case: Case) -> None:
    """In bf16 and fp16 every gradient is finite and right to the dtype's rounding, far from the start."""
    pair = ask.pair(case, "far")
    actual = measure.observe(pair.ours, case, gradients=True)
    exact = measure.observe(pair.theirs, double(case), gradients=True)
    noise = functools.cache(lambda: ask.noise(pair, gradients=True, unit=case.torch_dtype))
    unit, at = measure.roundoff(case.torch_dtype), pair.point
    for name in [f"gradient of {n}" for n in ("x", *pair.trainable)]:
        if name in actual and name in exact:
            floor = unit * measure.floor(name, exact, at)
            measured = functools.partial(lambda n: noise()[n], name)
            ask.judge(case, name, actual[name], exact[name], floor, "precision gradient", noise=measured)

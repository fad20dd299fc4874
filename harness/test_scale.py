"""Scale: the factor on the adapter's contribution, as a function of alpha and rank."""

from __future__ import annotations

from harness.cases.layer_cases import Case, Domain
from harness.compare import rank_stabilised, rounding
from harness.compare.context import Context, double
from harness.compare.lacking import nothing_lacks
from harness.compare.outcome import Deviation
from harness.compare.probing import coefficient, without_adapter
from harness.compare.thresholds import SCALE_FACTOR
from harness.engine.checks import check

WIDE = Domain(
    dtypes=("float32",), sizes=(3, 12), ranks=(1, 8), batches=((6,),), alphas=(3.0, 8.0, 1.0, 0.5, 32.0)
)


@check(
    "scale",
    "critical",
    title="the adapter's contribution has another factor than the reference's",
    failure_mode="the update is too large or too small by a factor that depends on alpha or rank",
    domain=WIDE,
    follows=("forward.random_parameters",),
)
def test_effective(context: Context, case: Case) -> None:
    """The least-squares factor between the subject's contribution y − y_base and the reference's is one.

    LoRA, PiSSA, DoRA: s = α/r; DeLoRA: λ/r; (IA)³ and HRA have none and must not depend on alpha.
    """
    pair = context.pair(case, "far")
    actual = rounding.observe(pair.ours, case)["output"]
    exact = rounding.observe(pair.theirs, double(case))["output"]
    base = without_adapter(case, pair.theirs.values())
    factor = coefficient(actual - base, exact - base)
    context.worst.see(abs(factor - 1), SCALE_FACTOR)
    if not abs(factor - 1) < SCALE_FACTOR:
        raise Deviation(
            case,
            "factor on the contribution",
            "1",
            f"{factor:.4g}",
            ratio=abs(factor - 1),
            threshold=SCALE_FACTOR,
        )


@check(
    "scale",
    "critical",
    title="with rank-stabilised scaling the layer computes another function than the reference",
    failure_mode="a checkpoint of rank-stabilised LoRA from elsewhere acts more strongly or less here",
    domain=rank_stabilised.DRAWN,
    applies=rank_stabilised.has_it,
    examples=4,
    follows=(
        "scale.effective",
        "forward.random_parameters",
        "forward.gradients",
        "forward.input_gradient",
    ),
    may_refuse=True,
)
def test_rank_stabilised(context: Context, case: Case) -> None:
    """With α/√r in place of α/r, where it is offered, output and gradients far from the start are the reference's."""
    rank_stabilised.is_offered(context, case)
    context.compare(context.pair(case, "far"), gradients=True)


@check(
    "scale",
    "major",
    title="an ordinary setting of the references is not taken",
    failure_mode="what is trained with it elsewhere cannot be trained here in the same way",
    against=("paper",),
    examples=1,
    diagnose=False,
)
def test_specs(context: Context, case: Case) -> None:
    """An alpha of one's own choice, no dropout, every mode left off, base layers with a bias and without are taken."""
    nothing_lacks(context, "spec")

"""One layer on an accelerator beside its equation in float64 on the processor, in units of rounding noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain
from harness.cases.regimes import REGIMES, regimes
from harness.compare import rounding
from harness.compare.layer import Layer, adapt, answering
from harness.compare.thresholds import THRESHOLDS
from harness.subjects.resolve import in_a_line
from oracles.implementation import AdapterSpec, Implementation
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS, Variant

# A few sizes of kernels beside the audit's own regimes: whole tiles, and whole tiles and a bit.
LARGE = ((1024, 512, 16, (256,)), (257, 129, 8, (3, 65)))


@dataclass(frozen=True)
class Precision:
    """``dtype`` of base and x; ``unit``: the dtype whose roundoff its products have (TF32's mantissa is float16's)."""

    name: str
    dtype: str
    unit: torch.dtype
    tf32: bool = False

    @property
    def threshold(self) -> float:
        """Ratios that rounding explains: as on the processor."""
        return THRESHOLDS["formula" if self.unit == torch.float32 else "precision"]


PRECISIONS = (
    Precision("float32", "float32", torch.float32),
    Precision("float32 with TF32", "float32", torch.float16, tf32=True),
    Precision("bfloat16", "bfloat16", torch.bfloat16),
)


@dataclass(frozen=True)
class Measured:
    """The worst ratio over the cases, of which quantity at which case; ``trouble``: why there is none."""

    ratio: float = 0.0
    of: str = ""
    trouble: str = ""

    def holds(self, precision: Precision) -> bool:
        """Whether rounding explains it."""
        return not self.trouble and self.ratio <= precision.threshold


def cases_of(variant: Variant, dtype: str) -> Iterator[Case]:
    """The audit's regimes, then the sizes of kernels, in ``dtype``."""
    for case in regimes(variant, Domain(dtypes=("float32",)), quick=False):
        yield case.but(dtype=dtype)
    for number, (in_, out, rank, batch) in enumerate(LARGE, start=len(REGIMES)):
        spec = AdapterSpec(variant.id, rank=rank, alpha=2.0 * rank)
        if variant.in_domain(out, in_, spec):
            yield Case(spec, in_, out, bias=True, batch=batch, dtype=dtype, seed=number)


def measure(subject: Implementation, variant: str, precision: Precision, device: str) -> Measured:
    """The worst of one method in one precision; what the subject raises is told, and ends it."""
    worst = Measured()
    try:
        with _tf32(precision.tf32):
            for case in cases_of(VARIANTS[variant], precision.dtype):
                for name, ratio in ratios(subject, case, precision, device):
                    if not ratio <= worst.ratio:  # NaN is the worst of all
                        worst = Measured(ratio, f"{name}, in {case.in_features}, out {case.out_features}")
    except Exception as error:
        return Measured(trouble=in_a_line(error))
    return worst


def ratios(
    subject: Implementation, case: Case, precision: Precision, device: str
) -> Iterator[tuple[str, float]]:
    """Output and gradients far from the start: error over noise."""
    seed_torch(case.seed)
    layer = adapt(subject, case.base().to(device), case.spec)
    layer.write(case.far(dict.fromkeys(layer.names)))
    at = rounding.point(case, {n: v.cpu() for n, v in layer.values().items()})
    trained = [n for n in layer.names if layer.raw(n).requires_grad]
    forward = VARIANTS[case.spec.variant].form.forward

    def evaluate(there: rounding.Point) -> rounding.Quantities:
        return rounding.evaluate(forward, there, trained, gradients=True)

    exact = evaluate(at)
    noise = rounding.noise(evaluate, at, precision.unit, torch.Generator().manual_seed(0))
    for name, value in _observed(layer, case, trained, device).items():
        yield name, rounding.norm(value - exact[name]) / noise[name]


def _observed(layer: Layer, case: Case, trained: list[str], device: str) -> dict[str, Tensor]:
    x = case.x.to(device).requires_grad_(True)
    layer.clear_gradients()
    y = layer(x)
    with answering(layer.who, "the backward pass"):
        y.backward(case.cotangent.to(device, y.dtype))
    found = {f"gradient of {n}": layer.gradient(n).cpu() for n in trained}
    if x.grad is not None:
        found["gradient of x"] = x.grad.double().cpu()
    return {"output": y.detach().double().cpu(), **found}


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

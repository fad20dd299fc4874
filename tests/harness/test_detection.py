"""The smallest error that the audit sees: 1e-5 of the contribution in fp32, 2 % in bf16, for every variant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.cases.layer_cases import Case, Domain, cases
from harness.cases.profiles import Profile
from harness.compare.context import Context
from harness.compare.outcome import Deviation
from harness.engine.session import claims_for, load_checks
from oracles.equation import FORMS, Equation
from oracles.implementation import AdapterSpec
from oracles.peft import Peft
from oracles.variants import VARIANTS, paper
from oracles.variants.record import of_forward

ERRORS = {"float32": 1e-5, "bfloat16": 0.02}
SIZES = ((12, 9, 4, 3.0), (9, 14, 6, 8.0), (15, 8, 2, 0.5))


def off_by(variant: str, error: float) -> Equation:
    """The right equation, its contribution too large by a relative ``error``."""
    right = FORMS[variant].forward

    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, p: paper.Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        base = paper.linear(x, VARIANTS[variant].weight_beneath(W, p), b)
        return base + (right(x, W, b, p, spec, dropped) - base) * (1 + error)

    return Equation({variant: FORMS[variant].but(equation=of_forward(forward))})


def generic(variant: str, dtype: str) -> list[Case]:
    """Three cases of moderate size, batch 32, with a bias."""
    return [
        Case(AdapterSpec(variant, rank=rank, alpha=alpha), in_, out, True, (32,), dtype, seed)
        for seed, (in_, out, rank, alpha) in enumerate(SIZES)
    ]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_error_of_the_contribution_is_caught(variant: str, dtype: str) -> None:
    check = load_checks()["dtype.forward"]
    wrong = Context(off_by(variant, ERRORS[dtype]), Peft(), VARIANTS[variant])
    for case in generic(variant, dtype):
        with pytest.raises(Deviation):
            check.function(wrong, case)


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_error_is_quiet(variant: str, dtype: str) -> None:
    check = load_checks()["dtype.forward"]
    right = Context(off_by(variant, 0.0), Peft(), VARIANTS[variant])
    for case in generic(variant, dtype):
        check.function(right, case)


@pytest.mark.parametrize("variant", VARIANTS)
def test_clean_examples_raise_no_alarm(variant: str) -> None:
    """A few hundred here; `python -m tests.calibrate` runs ten thousand per variant."""
    asked = ("forward.random_parameters", "forward.gradients", "dtype.forward", "step0.gradients")
    claims = claims_for(
        Equation(),
        variants=[variant],
        oracles=("peft",),
        checks=lambda c: c.id in asked,
        profile=Profile("x", 60, 9),
    )
    assert {c.id: c.reason for c in claims if c.outcome != "pass"} == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cases_are_not_degenerate(variant: str) -> None:
    """What matters is drawn: squares, one input, one output, bias, ranks of either parity and above min(in, out)."""
    drawn: list[Case] = []

    from hypothesis import Phase, given, seed, settings

    @seed(1)
    @settings(max_examples=300, database=None, deadline=None, phases=(Phase.generate,))
    @given(cases(VARIANTS[variant], Domain()))
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    assert {c.in_features == c.out_features for c in drawn} == {True, False}
    assert min(c.in_features for c in drawn) == 1
    assert min(c.out_features for c in drawn) == 1
    assert {c.bias for c in drawn} == {True, False}
    assert all(c.spec.alpha != c.spec.rank for c in drawn)
    if VARIANTS[variant].has_rank and variant not in ("pissa", "hra"):
        assert {c.spec.rank % 2 for c in drawn} == {0, 1}
        assert any(c.spec.rank > min(c.in_features, c.out_features) for c in drawn)
    torch.manual_seed(0)

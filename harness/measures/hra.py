"""How much the references of HRA disagree: one measure per catalogued entry."""

from __future__ import annotations

import torch

from harness.measures.measuring import apart, case, measures, peft_at, value
from oracles.peft import Peft
from oracles.variants.hra import reflect


@measures("hra.output_side")
def _output_side() -> float:
    at = case("hra", "author_llama", "8x8-r4-far-float64")
    return apart(at.expected["forward"], peft_at(at, ("U",)))


@measures("hra.epsilon")
def _epsilon() -> float:
    at = case("hra", "author_llama", "16x12-r6-init-float64")
    y = at.x @ at.weight.mT
    for u in at.parameters["U"].mT:
        y = reflect(y, u)
    return apart(at.expected["forward"], y if at.bias is None else y + at.bias)


@measures("hra.unpaired_start")
def _unpaired_start() -> float:
    at = case("hra", "author_llama", "16x12-r6-init-float64")
    assert apart(Peft().adapt(at.base(), at.spec).module(at.x), at.base()(at.x)) < 1e-9
    return apart(at.expected["forward"], at.base()(at.x))


@measures("hra.gram_schmidt_start")
def _gram_schmidt_start() -> float:
    at = case("hra", "author_llama_gs", "16x12-r6-init-float64")
    flipped = at.base().weight.detach() * torch.tensor([-1.0] * 6 + [1.0] * 10).double()[:, None]
    assert apart(at.expected["effective_weight"], flipped) < 1e-9
    adapted = Peft().adapt(at.base(), at.spec)
    assert not apart(adapted.module(at.x), at.base()(at.x)) < 0.1  # NaN where the noise is exactly zero
    first, second = value(adapted, "U")[:, 0], value(adapted, "U")[:, 1]
    rest = second - (first @ second) / (first @ first) * first
    return float(rest.norm() / second.norm())

"""How much the references of DeLoRA disagree: one measure per catalogued entry."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.measures.measuring import apart, base, case, demand_live, measures, peft_at, value, write
from oracles.authors.delora import DeloraAuthor
from oracles.authors.family import effective_weight
from oracles.implementation import Adapted, AdapterSpec
from oracles.peft import Peft
from oracles.variants import VARIANTS


@measures("delora.frozen_copy")
def _frozen_copy() -> float:
    at = case("delora", "author", "8x8-r4-far-float64")
    return apart(at.expected["forward"], peft_at(at, ("A", "B", "lambda")))


@measures("delora.lambda_on_both")
def _lambda_on_both() -> float:
    at = case("delora", "author", "8x8-r4-init-float64")
    assert float(at.expected["grad.lambda"].abs()) < 1e-9
    p = {
        **at.parameters,
        "w_norm": at.weight.norm(dim=0),
        "lambda": at.parameters["lambda"].clone().requires_grad_(True),
    }
    y = VARIANTS["delora"].form.forward(
        at.x, at.weight, None, p, at.spec, at.x
    )  # Eq. (9): the frozen term is a constant
    return abs(float(torch.autograd.grad(y, p["lambda"], at.cotangent)[0]))


@measures("delora.initial_b")
def _initial_b() -> float:
    at = case("delora", "author", "8x8-r4-init-float64")
    assert not value(Peft().adapt(at.base(), at.spec), "B").any()
    return float(at.parameters["B"].abs().max())


@measures("delora.norms_recomputed")
def _norms_recomputed() -> float:
    at, form = case("delora", "author", "8x8-r4-far-float64"), DeloraAuthor.form().forward
    sizes = [
        (form(at.x, k * at.weight, None, at.parameters, at.spec, at.x) - k * at.x @ at.weight.mT).norm()
        for k in (1, 2)
    ]
    return float(sizes[1] / sizes[0])


@measures("delora.clamp")
def _clamp() -> float:
    adapted, x = Peft().adapt(layer := base(), AdapterSpec("delora", 1)), torch.randn(3, 8).double()
    b, sizes, plain_y = torch.randn(6, 1).double(), [], layer(x).detach()
    for length in (5e-5, 1.0):
        write(adapted, {"B": b / b.norm() * length})
        sizes.append(float((adapted.module(x).detach() - plain_y).norm()))
    return sizes[0] / sizes[1]


@measures("delora.aliasing")
def _aliasing() -> float:
    demand_live("delora")
    moved = []
    for shipped in (True, False):
        adapted = DeloraAuthor(as_shipped=shipped).adapt(base(), AdapterSpec("delora", 2))
        before, A = effective_weight(adapted.module, 8, torch.float64), value(adapted, "A").clone()
        _train(adapted, torch.randn(16, 8).double(), torch.randn(16, 6).double())
        assert float((value(adapted, "A") - A).abs().max()) > 0.01
        moved.append(float((effective_weight(adapted.module, 8, torch.float64) - before).abs().max()))
    assert moved[1] > 0.01
    return moved[0]


def _train(adapted: Adapted, x: Tensor, target: Tensor) -> None:
    optimiser = torch.optim.AdamW(
        [s.tensor for s in adapted.slots.values() if s.tensor.requires_grad], lr=1e-2
    )
    for _ in range(20):
        optimiser.zero_grad()
        (adapted.module(x) - target).square().mean().backward()
        optimiser.step()

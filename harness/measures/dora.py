"""How much the references of DoRA disagree: one measure per catalogued entry."""

from __future__ import annotations

import math

import torch

from harness.measures.measuring import apart, author_of, base, case, measures, value, write
from oracles.authors.base import plain
from oracles.authors.dora import DoraAuthor
from oracles.authors.family import effective_weight
from oracles.implementation import AdapterSpec
from oracles.peft import Peft
from oracles.variants import paper


@measures("dora.norm_axis")
def _norm_axis() -> float:
    W, B, A = base().weight.detach(), torch.randn(6, 2).double(), torch.randn(2, 8).double()
    V = W + 0.3 * B @ A
    by_row, by_column = (W.norm(dim=d, keepdim=True) * V / V.norm(dim=d, keepdim=True) for d in (1, 0))
    adapted = Peft().adapt(plain(W, None), AdapterSpec("dora", 2, 0.6))
    write(adapted, {"A": A, "B": B})
    assert apart(effective_weight(adapted.module, 8, torch.float64), by_row) < 1e-9
    return apart(by_column, by_row)


@measures("dora.full_gradient")
def _full_gradient() -> float:
    at = case("dora", "author", "8x8-r4-far-float64")
    p = {name: tensor.clone().requires_grad_(True) for name, tensor in at.parameters.items()}
    V = at.weight + paper.scale(at.spec) * p["B"] @ p["A"]
    y = paper.linear(at.x, p["m"][:, None] * V / V.norm(dim=1, keepdim=True), at.bias)
    full = torch.autograd.grad(y, p["B"], at.cotangent)[0]
    if author_of("dora", "author").kind == "live":
        shipped = DoraAuthor(simple=False).adapt(at.base(), at.spec)
        write(shipped, dict(at.parameters))
        found = torch.autograd.grad(shipped.module(at.x), shipped.slots["B"].tensor, at.cotangent)[0]
        assert apart(found, full) < 1e-9
    return apart(full, at.expected["grad.B"])


@measures("dora.initial_dtype")
def _initial_dtype() -> float:
    at = case("dora", "author", "16x12-r6-init-bfloat16")
    exact = at.weight.double().norm(dim=1)
    ours = value(Peft().adapt(at.base(), at.spec), "m")
    errors = [float(((m.double() - exact) / exact).abs().max()) for m in (ours, at.parameters["m"])]
    assert math.isclose(errors[1], errors[0], rel_tol=1e-6)
    return errors[0]


@measures("dora.one_dimension")
def _one_dimension() -> float:
    spec = AdapterSpec("dora", 2)
    author = author_of("dora", "author")
    if author.kind == "live":
        assert author.make().adapt(base(), spec).module(torch.randn(8, dtype=torch.float64)).dim() == 1
    return float(Peft().adapt(base(), spec).module(torch.randn(8, dtype=torch.float64)).dim())

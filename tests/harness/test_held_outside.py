"""An adapter whose tensors torch does not know of: told of the module that keeps them so, and of nobody else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.compare.held_outside import HELD_OUTSIDE
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from reports.model import Finding
from tests.harness.test_told_rightly import findings
from tests.subjects import hooked, parametrized, wrapped

ASKED = (
    "shapes.roles",
    "contexts.state_dict",
    "dropout.off_in_eval",
    "lifecycle.inactive",
)


class Factors(nn.Module):
    """A and B, and their dropout."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        factors = wrapped.Lora(base, spec)
        self.A, self.B, self.drop, self.s = factors.A, factors.B, factors.drop, factors.s

    def forward(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.A.dtype)), self.A), self.B) * self.s


class InADict(nn.Module):
    """The adapter is in a plain dict."""

    kept_in: Any = dict

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = self.kept_in({"default": Factors(base, spec)})
        self.active = ("default",)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + sum(self.adapters[n](x) for n in self.active)).to(y.dtype)


class InAModuleDict(InADict):
    """The adapter is in a dict that torch knows of."""

    kept_in = nn.ModuleDict


class Keeping(Implementation):
    """A library of named adapters, whose layers keep them as ``layer`` does."""

    name, version, variants = "keeping", "1", frozenset({"lora"})

    def __init__(self, layer: type[InADict]) -> None:
        self.layer = layer

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.rslora:
            raise Unsupported("no rank-stabilised scale")
        return self.handle(self.layer(base, spec), "default")

    def handle(self, layer: nn.Module, name: str) -> Adapted:
        factors = layer.adapters[name]
        return Adapted(layer, {"A": Slot(factors.A), "B": Slot(factors.B)})

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        adapted.module.adapters[name] = Factors(adapted.module.base, spec)
        return self.handle(adapted.module, name)

    def set_adapters(self, adapted: Adapted, names: tuple[str, ...]) -> None:
        adapted.module.active = tuple(names)


def of_all(subject: Implementation, *checks: str) -> tuple[Finding, ...]:
    return findings(subject, checks or ASKED)


def test_tensors_in_a_plain_dict_are_one_finding() -> None:
    """What training, dropout and the state dict make of it is none of its own."""
    (found,) = of_all(Keeping(InADict))
    assert (found.mistake, found.severity, found.tag) == ("shapes.held_outside", "critical", "BUG")
    assert (found.title, found.aspect) == (HELD_OUTSIDE.summary, "shapes")
    assert {claim.partition("[")[0] for claim in found.claims} == set(ASKED)


class Shown(torch.autograd.Function):
    """Another framework's function of x, A and B, with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.s = s
        return s * x @ A.T @ B.T

    @staticmethod
    def backward(ctx: Any, *given: Any) -> tuple[Tensor | None, ...]:
        (x, A, B), (G, s) = ctx.saved_tensors, (given[0], ctx.s)
        return s * G @ B @ A, s * (G @ B).T @ x, s * G.T @ (x @ A.T), None


class OfAnotherFramework(wrapped.Lora):
    """Shows the other framework's arrays to torch: they are no parameters, and need not be."""

    def build(self) -> None:
        super().build()
        self.shown = {"A": self.A.detach().requires_grad_(), "B": self.B.detach().requires_grad_()}
        del self.A, self.B

    def slots(self) -> dict[str, Slot]:
        return {name: Slot(t) for name, t in self.shown.items()}

    def branch(self, x: Tensor) -> Tensor:
        flat = x.to(self.dtype).reshape(-1, x.shape[-1])
        update: Tensor = Shown.apply(flat, self.shown["A"], self.shown["B"], self.s)
        return update.reshape(*x.shape[:-1], -1)


class ReadThroughFunctions(wrapped.Lora):
    """B is stored times the scale."""

    def slots(self) -> dict[str, Slot]:
        s = self.s
        stored = Slot(self.B, read=lambda t: t / s, write=lambda t: t * s, gradient=lambda g: g * s)
        return {"A": Slot(self.A), "B": stored}

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), self.A), self.B)


@pytest.mark.parametrize(
    "subject",
    [
        Keeping(InAModuleDict),
        hooked.Library(),
        parametrized.Library(),
        wrapped.Library({"lora": OfAnotherFramework}),
        wrapped.Library({"lora": ReadThroughFunctions}),
    ],
    ids=["module_dict", "hooked", "parametrized", "other_framework", "read"],
)
def test_who_keeps_them_otherwise_is_not_told_of(subject: Implementation) -> None:
    assert not of_all(subject, "shapes.roles")

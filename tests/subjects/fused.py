"""Style: all of an adapter in one flat parameter, as sharded training likes it; slots are slices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Slot
from tests.subjects.files import InSafetensors


class Flat(nn.Module):
    """LoRA, DoRA or DeLoRA with ``theta`` holding A, then B, then m or λ."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        if spec.rank < 1:
            raise ValueError("rank below one")
        self.base, self.spec = base.requires_grad_(False), spec
        W = base.weight.to(torch.promote_types(base.weight.dtype, torch.float32))
        out, in_ = W.shape
        start = {"A": torch.empty(spec.rank, in_, dtype=W.dtype), "B": W.new_zeros(out, spec.rank)}
        nn.init.kaiming_uniform_(start["A"], a=5**0.5)
        if spec.variant == "dora":
            start["m"] = W.norm(dim=1)
        if spec.variant == "delora":
            start["lambda"] = W.new_tensor([spec.lambda0])
            self.register_buffer("w_norm", W.norm(dim=0))
        self.shapes = {name: t.shape for name, t in start.items()}
        self.theta = nn.Parameter(torch.cat([t.flatten() for t in start.values()]))

    def part(self, name: str) -> Callable[[Tensor], Tensor]:
        """The view of ``theta`` that is tensor ``name``."""
        names = list(self.shapes)
        begin = sum(self.shapes[n].numel() for n in names[: names.index(name)])
        shape = self.shapes[name]
        return lambda theta: theta[begin : begin + shape.numel()].view(shape)

    def get(self, name: str) -> Tensor:
        return self.part(name)(self.theta)

    def slots(self) -> dict[str, Slot]:
        found = {name: Slot(self.theta, self.part(name)) for name in self.shapes}
        return found | ({"w_norm": Slot(self.w_norm)} if self.spec.variant == "delora" else {})

    def forward(self, x: Tensor) -> Tensor:
        d = fn.dropout(x.to(self.theta.dtype), self.spec.dropout, self.training)
        y = self.base(x)
        return (y + getattr(self, self.spec.variant)(d)).to(y.dtype)

    def lora(self, d: Tensor) -> Tensor:
        return d @ self.get("A").T @ self.get("B").T * (self.spec.alpha / self.spec.rank)

    def dora(self, d: Tensor) -> Tensor:
        W = self.base.weight.to(d.dtype)
        V = W + self.spec.alpha / self.spec.rank * self.get("B") @ self.get("A")
        g = self.get("m") / V.detach().norm(dim=1)
        return d @ (g[:, None] * V - W).T

    def delora(self, d: Tensor) -> Tensor:
        A, B = (fn.normalize(t, dim=dim, eps=1e-4) for t, dim in ((self.get("A"), 1), (self.get("B"), 0)))
        return (d * self.w_norm) @ A.T @ B.T * self.get("lambda") / self.spec.rank


class Library(InSafetensors):
    """One parameter per adapter."""

    name = "fused"
    version = "7"
    variants = frozenset({"lora", "dora", "delora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = Flat(base, spec).train(base.training)
        return Adapted(layer, layer.slots())

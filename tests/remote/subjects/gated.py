"""(IA)³ whose gate is kept as w, l = 1 + w, and whose methods answer for what `nearest` makes of a spec."""

import dataclasses

import torch
from torch import nn

from oracles.implementation import Adapted, Implementation, Slot, Unsupported


class Gated(nn.Module):
    """y = (1 + w) ⊙ (x Wᵀ + b)."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.w = nn.Parameter(torch.zeros(base.out_features, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) * (1 + self.w)


class Library(Implementation):
    """Output gates only."""

    name, version = "gated", "1"
    variants = frozenset({"ia3"})

    def nearest(self, spec):
        return dataclasses.replace(spec, feedforward=False)

    def adapt(self, base, spec):
        if spec.feedforward:
            raise Unsupported("outputs are gated")
        layer = Gated(base).train(base.training)
        return Adapted(
            layer, {"l": Slot(layer.w, read=lambda w: 1 + w, write=lambda v: v - 1, gradient=lambda g: g)}
        )

    def save(self, adapted, path):
        from safetensors.torch import save_file

        save_file({"w": adapted.module.w.detach()}, path)

    def load(self, base, spec, path):
        from safetensors.torch import load_file

        found = load_file(path)
        adapted = self.adapt(base, spec)
        if set(found) != {"w"} or found["w"].shape != adapted.module.w.shape:
            raise ValueError("not a gate of this layer: %s" % sorted(found))
        with torch.no_grad():
            adapted.module.w.copy_(found["w"])
        return adapted


class RaisesInEval(Gated):
    """Its own eval() has a slip; a parent's never calls it."""

    def eval(self):
        super().eval()
        return hidden  # noqa: F821


class Slips(Library):
    """As above."""

    def adapt(self, base, spec):
        layer = RaisesInEval(base)
        return Adapted(
            layer, {"l": Slot(layer.w, read=lambda w: 1 + w, write=lambda v: v - 1, gradient=lambda g: g)}
        )

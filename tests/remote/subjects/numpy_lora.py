# /// script
# requires-python = ">=3.9"
# dependencies = ["numpy"]
# ///
"""LoRA in numpy alone: the smallest library of arrays, and an environment without torch."""

from __future__ import annotations

import numpy as np

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import Unsupported


class NumpyLora(ArrayImplementation):
    """y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ; A starts uniform in ±1/√in, B at zero."""

    name = "numpy_lora"
    version = "1"
    variants = frozenset({"lora"})

    def adapt(self, W, b, spec, seed):
        if spec.rank < 1:
            raise ValueError("rank %d, expected at least 1" % spec.rank)
        if spec.rslora:
            raise Unsupported("numpy_lora has no rsLoRA")
        bound = 1 / np.sqrt(W.shape[1])
        A = np.random.default_rng(seed).uniform(-bound, bound, (spec.rank, W.shape[1])).astype(W.dtype)
        return {"W": W, "b": b, "spec": spec, "A": A, "B": np.zeros((W.shape[0], spec.rank), W.dtype)}

    def parameters(self, adapted):
        return {"A": adapted["A"], "B": adapted["B"]}

    def assign(self, adapted, values):
        adapted.update({name: value.astype(adapted[name].dtype) for name, value in values.items()})

    def forward(self, adapted, x, training, seed):
        scale = x.dtype.type(adapted["spec"].alpha / adapted["spec"].rank)
        y = x @ adapted["W"].T + scale * (
            self.dropped(adapted, x, training, seed) @ adapted["A"].T @ adapted["B"].T
        )
        return y if adapted["b"] is None else y + adapted["b"]

    def vjp(self, adapted, x, G, training, seed):
        A, B, scale = adapted["A"], adapted["B"], adapted["spec"].alpha / adapted["spec"].rank
        dropped = self.dropped(adapted, x, training, seed).reshape(-1, x.shape[-1])
        flat = G.reshape(-1, G.shape[-1])
        mask = self.mask(adapted, x, training, seed)
        return {
            "A": (scale * (flat @ B).T @ dropped).astype(x.dtype),
            "B": (scale * flat.T @ (dropped @ A.T)).astype(x.dtype),
            "x": (G @ adapted["W"] + scale * (G @ B @ A) * mask).astype(x.dtype),
        }

    def mask(self, adapted, x, training, seed):
        p = adapted["spec"].dropout
        if not training or p == 0:
            return x.dtype.type(1)
        return (np.random.default_rng(seed).random(x.shape) >= p).astype(x.dtype) / x.dtype.type(1 - p)

    def dropped(self, adapted, x, training, seed):
        return x * self.mask(adapted, x, training, seed)

    def merge(self, adapted):
        scale = adapted["spec"].alpha / adapted["spec"].rank
        return (adapted["W"] + scale * adapted["B"] @ adapted["A"]).astype(adapted["W"].dtype), adapted["b"]

    def detach(self, adapted):
        return adapted["W"], adapted["b"]

    def save(self, adapted, path):
        np.savez(path, A=adapted["A"], B=adapted["B"])

    def load(self, W, b, spec, path):
        with np.load(str(path) + ".npz") as stored:
            A, B = stored["A"], stored["B"]
        if A.shape != (spec.rank, W.shape[1]) or B.shape != (W.shape[0], spec.rank):
            raise ValueError("the file's A is %s, expected %s" % (A.shape, (spec.rank, W.shape[1])))
        return {"W": W, "b": b, "spec": spec, "A": A, "B": B}

"""Flax NNX's LoRA with parameters in single precision, and the dtype of the layer that it computes in."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec

jax.config.update("jax_enable_x64", True)


class FlaxDtype(ArrayImplementation):
    """``nnx.LoRA(dtype=...)`` around an ``nnx.Linear``: no scale, so alpha is the rank; no dropout."""

    name = "flax"
    version = flax.__version__
    variants = frozenset({"lora"})
    dtypes = frozenset({"float32", "float16"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """α = r, nothing dropped."""
        return dataclasses.replace(spec, alpha=float(spec.rank), dropout=0.0, rslora=False)

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        sizes = {"use_bias": b is not None, "dtype": W.dtype, "param_dtype": W.dtype}
        base = nnx.Linear(W.shape[1], W.shape[0], rngs=nnx.Rngs(0), **sizes)
        base.kernel.value = jax.numpy.asarray(W.T)
        if b is not None:
            base.bias.value = jax.numpy.asarray(b)
        return nnx.LoRA(
            W.shape[1], spec.rank, W.shape[0], base_module=base, dtype=W.dtype, rngs=nnx.Rngs(seed)
        )

    def parameters(self, adapted: Any) -> Any:
        return {name: np.array(variable.value).T for name, variable in _factors(adapted).items()}

    def assign(self, adapted: Any, values: Any) -> None:
        for name, value in values.items():
            variable = _factors(adapted)[name]
            variable.value = jax.numpy.asarray(value.T).astype(variable.value.dtype)

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        return np.array(adapted(jax.numpy.asarray(x)))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        graph, trained, rest = nnx.split(adapted, nnx.LoRAParam, ...)

        def call(x: Any, trained: Any) -> Any:
            return nnx.merge(graph, trained, rest)(x)

        y, back = jax.vjp(call, jax.numpy.asarray(x), trained)
        of_x, of_trained = back(jax.numpy.asarray(G).astype(y.dtype))
        gradients = {"A": of_trained["lora_a"].value, "B": of_trained["lora_b"].value}
        return {"x": np.array(of_x), **{name: np.array(g).T for name, g in gradients.items()}}


def _factors(layer: Any) -> dict[str, Any]:
    """Canonical name -> variable; Flax keeps (in, r) and (r, out)."""
    return {"A": layer.lora_a, "B": layer.lora_b}

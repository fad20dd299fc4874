# /// script
# requires-python = ">=3.11"
# dependencies = ["flax==0.12.8", "jax==0.10.2", "numpy"]
# ///
"""Flax NNX: ``nnx.LoRA`` around an ``nnx.Linear``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec, Unsupported

jax.config.update("jax_enable_x64", True)


class FlaxNnx(ArrayImplementation):
    """``nnx.LoRA``: no scale at all, so alpha is the rank; no dropout."""

    name = "flax"
    version = flax.__version__
    variants = frozenset({"lora"})
    dtypes = frozenset({"float64", "float32", "float16"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """α = r, nothing dropped."""
        return dataclasses.replace(spec, alpha=float(spec.rank), dropout=0.0, rslora=False)

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        if spec != self.nearest(spec):
            raise Unsupported("nnx.LoRA has neither alpha nor dropout")
        base = nnx.Linear(
            W.shape[1], W.shape[0], use_bias=b is not None, param_dtype=W.dtype, rngs=nnx.Rngs(0)
        )
        base.kernel[...] = W.T
        if b is not None:
            base.bias[...] = b
        layer = nnx.LoRA(W.shape[1], spec.rank, W.shape[0], base_module=base, rngs=nnx.Rngs(seed))
        return {"layer": layer, "W": W, "b": b}

    def parameters(self, adapted: Any) -> Any:
        return {name: np.array(value[...]).T for name, value in _factors(adapted["layer"]).items()}

    def assign(self, adapted: Any, values: Any) -> None:
        for name, value in values.items():
            _factors(adapted["layer"])[name][...] = jax.numpy.asarray(value.T)

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        return np.array(adapted["layer"](jax.numpy.asarray(x)))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        graph, trained, rest = nnx.split(adapted["layer"], nnx.LoRAParam, ...)

        def call(x: Any, trained: Any) -> Any:
            return nnx.merge(graph, trained, rest)(x)

        _, back = jax.vjp(call, jax.numpy.asarray(x), trained)
        of_x, of_trained = back(jax.numpy.asarray(G))
        gradients = {"A": of_trained["lora_a"][...], "B": of_trained["lora_b"][...]}
        return {"x": np.array(of_x), **{n: np.array(g).T for n, g in gradients.items()}}

    def source(self, variant: str, aspect: str) -> Any:
        methods = {"shapes": "__init__", "init": "__init__", "scale": "__call__", "forward": "__call__"}
        return (Path(inspect.getfile(nnx.LoRA)), f"LoRA.{methods[aspect]}") if aspect in methods else None


def _factors(layer: Any) -> dict[str, Any]:
    """Canonical name -> variable; Flax keeps (in, r) and (r, out)."""
    return {"A": layer.lora_a, "B": layer.lora_b}

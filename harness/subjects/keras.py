# /// script
# requires-python = ">=3.11"
# dependencies = ["keras==3.15.1", "jax==0.10.2", "numpy"]
# ///
"""Keras 3 on JAX: ``Dense.enable_lora``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec, Unsupported

jax.config.update("jax_enable_x64", True)


class Keras(ArrayImplementation):
    """``keras.layers.Dense`` with its LoRA, whose factors are float32 whatever the layer's dtype."""

    name = "keras"
    version = keras.__version__
    variants = frozenset({"lora"})
    dtypes = frozenset({"float64", "float32", "float16"})
    inputs = frozenset({2, 3, 4, 5})  # ``Dense`` itself refuses x of one dimension

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has neither dropout nor rsLoRA."""
        return dataclasses.replace(spec, rslora=False, dropout=0.0)

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        if spec.dropout or spec.rslora:
            raise Unsupported("Keras' enable_lora has neither dropout nor rsLoRA")
        layer = keras.layers.Dense(W.shape[0], use_bias=b is not None, dtype=W.dtype.name)
        layer.build((None, W.shape[1]))
        layer.set_weights([W.T] if b is None else [W.T, b])
        keras.utils.set_random_seed(seed)
        layer.enable_lora(spec.rank, lora_alpha=spec.alpha)
        return {"layer": layer, "W": W, "b": b}

    def variables(self, adapted: Any) -> dict[str, Any]:
        """The tensors that train, by canonical name where they have one."""
        own = {"lora_kernel_a": "A", "lora_kernel_b": "B"}
        return {own.get(v.name, v.name): v for v in adapted["layer"].trainable_variables}

    def parameters(self, adapted: Any) -> Any:
        return {n: _turned(n, np.array(v.value)) for n, v in self.variables(adapted).items()}

    def assign(self, adapted: Any, values: Any) -> None:
        for name, value in values.items():
            self.variables(adapted)[name].assign(_turned(name, value))

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        return np.array(adapted["layer"](x, training=training))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        layer, variables = adapted["layer"], self.variables(adapted)
        fixed = [v.value for v in layer.non_trainable_variables]

        def call(x: Any, trained: Any) -> Any:
            return layer.stateless_call(trained, fixed, x, training=training)[0]

        _, back = jax.vjp(call, jax.numpy.asarray(x), [v.value for v in variables.values()])
        of_x, of_trained = back(jax.numpy.asarray(G))
        gradients = {n: _turned(n, np.array(g)) for n, g in zip(variables, of_trained, strict=True)}
        return {"x": np.array(of_x), **gradients}

    def merge(self, adapted: Any) -> Any:
        """Keras folds the factors in where it saves a layer."""
        stored: dict[str, Any] = {}
        adapted["layer"].save_own_variables(stored)
        return np.array(stored["0"]).T, np.array(stored["1"]) if adapted["b"] is not None else None

    def source(self, variant: str, aspect: str) -> Any:
        file = Path(keras.src.layers.core.dense.__file__)
        methods = {"shapes": "enable_lora", "init": "enable_lora", "scale": "call", "forward": "call",
                   "merge": "_get_kernel_with_merged_lora"}  # fmt: skip
        return (file, f"Dense.{methods[aspect]}") if aspect in methods else None


def _turned(name: str, value: Any) -> Any:
    """Keras keeps kernels as (in, out), so its factors are the canonical ones transposed."""
    return value.T if name in ("A", "B") else value

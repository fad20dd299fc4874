"""One of mlx-vlm's LoRA layers, as its ``get_peft_model`` puts them into a language model."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.trainer.lora import LoRaLayer

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec

NAMES = ("A", "B")  # A is (in, r), B (r, out)


class MlxVlm(ArrayImplementation):
    """``LoRaLayer`` on the CPU, around a frozen linear layer."""

    name = "mlx-vlm"
    version = version("mlx-vlm")
    variants = frozenset({"lora"})
    dtypes = frozenset({"float32", "float16"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        base = nn.Linear(W.shape[1], W.shape[0], bias=b is not None)
        base.weight = mx.array(W)
        if b is not None:
            base.bias = mx.array(b)
        base.freeze()
        mx.random.seed(seed)
        return LoRaLayer(base, spec.rank, spec.alpha, spec.dropout)

    def parameters(self, adapted: Any) -> Any:
        return {name: np.array(adapted[name]).T for name in NAMES}

    def assign(self, adapted: Any, values: Any) -> None:
        for name, value in values.items():
            adapted[name] = mx.array(value.T).astype(adapted[name].dtype)

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        layer = adapted.train(training)
        mx.random.seed(seed)
        return np.array(layer(mx.array(x)))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        layer = adapted.train(training)

        def call(x: Any, *tensors: Any) -> Any:
            for name, value in zip(NAMES, tensors, strict=True):
                layer[name] = value
            mx.random.seed(seed)
            return layer(x)

        held = [layer[name] for name in NAMES]
        _, found = mx.vjp(call, [mx.array(x), *held], [mx.array(G)])
        for name, value in zip(NAMES, held, strict=True):
            layer[name] = value
        gradients = dict(zip(NAMES, found[1:], strict=True))
        return {"x": np.array(found[0]), **{name: np.array(g).T for name, g in gradients.items()}}

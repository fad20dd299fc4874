# /// script
# requires-python = ">=3.10"
# dependencies = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "numpy"]
# ///
"""mlx-lm's LoRA and DoRA, through the functions with which it converts a model, saves and loads."""

from __future__ import annotations

import dataclasses
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner import dora, lora
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec

LAYERS = {"lora": lora.LoRALinear, "dora": dora.DoRALinear}
NAMES = {"A": "lora_a", "B": "lora_b", "m": "m"}  # lora_a is (in, r), lora_b (r, out)


class Model(nn.Module):
    """A model of one block of one layer: mlx-lm adapts models."""

    def __init__(self, W: Any, b: Any) -> None:
        super().__init__()
        block = nn.Module()
        block.proj = nn.Linear(W.shape[1], W.shape[0], bias=b is not None)
        block.proj.weight = mx.array(W)
        if b is not None:
            block.proj.bias = mx.array(b)
        self.layers = [block]
        self.freeze()

    @property
    def layer(self) -> Any:
        """The one layer."""
        return self.layers[0].proj


class MlxLm(ArrayImplementation):
    """mlx-lm on the CPU. Its option is the scale itself, not alpha: the wrapper passes α/r."""

    name = "mlx-lm"
    version = version("mlx-lm")
    variants = frozenset(LAYERS)
    dtypes = frozenset({"float32", "float16"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def settings(self, spec: AdapterSpec) -> dict[str, Any]:
        """mlx-lm's ``lora_parameters``."""
        return {"rank": spec.rank, "scale": spec.alpha / spec.rank, "dropout": spec.dropout, "keys": ["proj"]}

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        model = Model(W, b)
        mx.random.seed(seed)
        linear_to_lora_layers(model, 1, self.settings(spec), use_dora=spec.variant == "dora")
        return {"model": model, "spec": spec, "W": W, "b": b}

    def names(self, adapted: Any) -> dict[str, str]:
        """Canonical name -> mlx-lm's."""
        return {k: v for k, v in NAMES.items() if v in adapted["model"].layer}

    def parameters(self, adapted: Any) -> Any:
        layer = adapted["model"].layer
        found = {name: np.array(layer[own]) for name, own in self.names(adapted).items()}
        return {name: value.T if name in ("A", "B") else value for name, value in found.items()}

    def assign(self, adapted: Any, values: Any) -> None:
        layer = adapted["model"].layer
        for name, value in values.items():
            own = NAMES[name]
            layer[own] = mx.array(value.T if name in ("A", "B") else value).astype(layer[own].dtype)

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        layer = adapted["model"].layer.train(training)
        mx.random.seed(seed)
        return np.array(layer(mx.array(x)))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        layer, names = adapted["model"].layer.train(training), self.names(adapted)

        def call(x: Any, *tensors: Any) -> Any:
            for own, value in zip(names.values(), tensors, strict=False):
                layer[own] = value
            mx.random.seed(seed)
            return layer(x)

        held = [layer[own] for own in names.values()]
        _, found = mx.vjp(call, [mx.array(x), *held], [mx.array(G)])
        for own, value in zip(names.values(), held, strict=False):
            layer[own] = value
        gradients = {name: np.array(g) for name, g in zip(names, found[1:], strict=False)}
        return {"x": np.array(found[0]), **{n: g.T if n in ("A", "B") else g for n, g in gradients.items()}}

    def merge(self, adapted: Any) -> Any:
        fused = adapted["model"].layer.fuse()
        return np.array(fused.weight), np.array(fused.bias) if "bias" in fused else None

    def detach(self, adapted: Any) -> Any:
        linear = adapted["model"].layer.linear
        return np.array(linear.weight), np.array(linear.bias) if "bias" in linear else None

    def save(self, adapted: Any, path: Path) -> None:
        """What mlx-lm's trainer and its ``lora`` command write."""
        path.mkdir(parents=True, exist_ok=True)
        spec = adapted["spec"]
        config = {"fine_tune_type": spec.variant, "num_layers": 1, "lora_parameters": self.settings(spec)}
        (path / "adapter_config.json").write_text(json.dumps(config))
        trained = dict(tree_flatten(adapted["model"].trainable_parameters()))
        mx.save_safetensors(str(path / "adapters.safetensors"), trained)

    def load(self, W: Any, b: Any, spec: AdapterSpec, path: Path) -> Any:
        model = load_adapters(Model(W, b), str(path))
        mx.eval(model.parameters())
        return {"model": model, "spec": spec, "W": W, "b": b}

    def source(self, variant: str, aspect: str) -> Any:
        methods = {
            "shapes": "__init__",
            "init": "__init__",
            "scale": "__call__",
            "forward": "__call__",
            "merge": "fuse",
        }
        if aspect in methods:
            return Path(inspect.getfile(LAYERS[variant])), f"{LAYERS[variant].__name__}.{methods[aspect]}"
        return None

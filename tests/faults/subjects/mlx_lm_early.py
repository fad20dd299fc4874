"""mlx-lm's first LoRA, before its adapters had a configuration: the file is put into fresh layers when it is loaded."""

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
from mlx_lm.tuner import utils
from mlx_lm.tuner.lora import LoRALinear

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec

NAMES = {"A": "lora_a", "B": "lora_b", "m": "m"}  # lora_a is (in, r), lora_b (r, out)
OPTIONS = inspect.signature(LoRALinear.__init__).parameters
DEFAULT_RANK, DEFAULT_ALPHA = 8, 160.0  # from_linear's: a scale of 10 · 16/8


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


class MlxLmEarly(ArrayImplementation):
    """LoRA on the CPU. Its scale is ``scale * alpha / r``: the wrapper passes α, and 1 for the scale."""

    name = "mlx-lm"
    version = version("mlx-lm")
    variants = frozenset({"lora"})
    dtypes = frozenset({"float32"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def settings(self, spec: AdapterSpec) -> dict[str, Any]:
        """``from_linear``'s arguments, which later releases call otherwise."""
        before = "lora_" if "lora_alpha" in OPTIONS else ""
        return {"r": spec.rank, f"{before}alpha": spec.alpha, f"{before}dropout": spec.dropout, "scale": 1.0}

    def sizes(self, spec: AdapterSpec) -> dict[str, Any]:
        """``lora_parameters`` in a configuration."""
        return {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "dropout": spec.dropout,
            "scale": 1.0,
            "keys": ["proj"],
        }

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        model = Model(W, b)
        mx.random.seed(seed)
        model.layers[0].proj = LoRALinear.from_linear(model.layer, **self.settings(spec))
        return {"model": model, "spec": spec}

    def names(self, adapted: Any) -> dict[str, str]:
        """Canonical name -> mlx-lm's."""
        return {name: own for name, own in NAMES.items() if own in adapted["model"].layer}

    def parameters(self, adapted: Any) -> Any:
        layer = adapted["model"].layer
        return {name: np.array(layer[own]).T for name, own in self.names(adapted).items()}

    def assign(self, adapted: Any, values: Any) -> None:
        for name, value in values.items():
            adapted["model"].layer[NAMES[name]] = mx.array(value.T)

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        layer = adapted["model"].layer.train(training)
        mx.random.seed(seed)
        return np.array(layer(mx.array(x)))

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Any:
        layer, names = adapted["model"].layer.train(training), self.names(adapted)

        def call(x: Any, *tensors: Any) -> Any:
            for own, value in zip(names.values(), tensors, strict=True):
                layer[own] = value
            mx.random.seed(seed)
            return layer(x)

        held = [layer[own] for own in names.values()]
        _, found = mx.vjp(call, [mx.array(x), *held], [mx.array(G)])
        for own, value in zip(names.values(), held, strict=True):
            layer[own] = value
        gradients = dict(zip(names, found[1:], strict=True))
        return {"x": np.array(found[0]), **{name: np.array(g).T for name, g in gradients.items()}}

    def merge(self, adapted: Any) -> Any:
        """``to_linear``, or ``fuse``."""
        layer = adapted["model"].layer
        fused = layer.fuse() if hasattr(layer, "fuse") else layer.to_linear()
        return np.array(fused.weight), np.array(fused.bias) if "bias" in fused else None

    def save(self, adapted: Any, path: Path) -> None:
        """What the trainer writes and, where it does, the configuration that the ``lora`` command puts beside it."""
        path.mkdir(parents=True, exist_ok=True)
        spec = adapted["spec"]
        sizes = self.sizes(spec)
        config = {"lora_layers": 1, "lora_parameters": sizes, "use_dora": spec.variant == "dora"}
        (path / "adapter_config.json").write_text(json.dumps(config))
        trained = dict(tree_flatten(adapted["model"].trainable_parameters()))
        mx.save_safetensors(str(path / "adapters.safetensors"), trained)

    def load(self, W: Any, b: Any, spec: AdapterSpec, path: Path) -> Any:
        """``apply_lora_layers``: of a file, or in later releases of the folder."""
        of_folder = "adapter_path" in inspect.signature(utils.apply_lora_layers).parameters
        place = path if of_folder else path / "adapters.safetensors"
        model = utils.apply_lora_layers(Model(W, b), str(place))
        mx.eval(model.parameters())  # as mlx-lm's own load does: mlx reads files when they are needed
        return {"model": model, "spec": spec}


class DefaultSettings(MlxLmEarly):
    """The same where only ``from_linear``'s own settings are used, which loading takes for granted."""

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """r = 8 and a scale of 20."""
        return dataclasses.replace(spec, rslora=False, rank=DEFAULT_RANK, alpha=DEFAULT_ALPHA)

    def load(self, W: Any, b: Any, spec: AdapterSpec, path: Path) -> Any:
        """With the spec's dropout: that loading puts 0.05 there, whatever was saved, is another report's."""
        found = super().load(W, b, spec, path)
        found["model"].layer.lora_dropout = nn.Dropout(p=spec.dropout)
        return found


class Converted(MlxLmEarly):
    """LoRA and DoRA as ``linear_to_lora_layers`` puts them into a model, once the scale was all there is of α."""

    variants = frozenset({"lora", "dora"})

    def sizes(self, spec: AdapterSpec) -> dict[str, Any]:
        """``lora_parameters``: the scale is α/r."""
        return {"rank": spec.rank, "scale": spec.alpha / spec.rank, "dropout": spec.dropout, "keys": ["proj"]}

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        model = Model(W, b)
        mx.random.seed(seed)
        utils.linear_to_lora_layers(model, 1, self.sizes(spec), use_dora=spec.variant == "dora")
        return {"model": model, "spec": spec}

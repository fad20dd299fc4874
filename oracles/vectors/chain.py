"""The tiny models of the corpus: a chain of layers, described by plain names and sizes.

A base's ``config.json`` lists its layers in order; a layer's tensors are ``<name>.weight`` and ``<name>.bias``, as
torch lays them out (a conv1d's weight is (in, out)). ``run`` computes it from tensors alone, ``ChainModel`` is the
same as an ``nn.Module`` that a library can adapt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Config = dict[str, Any]


def run(config: Config, tensors: Tensors, x: Tensor) -> Tensor:
    """The output ("logits") for one input: token ids (n,) or numbers of the shape that the config gives."""
    for layer in config["layers"]:
        x = OPERATIONS[layer["kind"]](layer, tensors, x)
    return x


def _weights(layer: Config, tensors: Tensors) -> tuple[Tensor, Tensor | None]:
    name = layer["name"]
    return tensors[f"{name}.weight"], tensors.get(f"{name}.bias")


def _linear(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    return F.linear(x, *_weights(layer, tensors))


def _conv1d(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    W, b = _weights(layer, tensors)
    return F.linear(x, W.mT, b)


def _embedding(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    return tensors[f"{layer['name']}.weight"][x]


def _conv2d(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    return F.conv2d(x, *_weights(layer, tensors), stride=layer.get("stride", 1))


def _norm(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    W, b = _weights(layer, tensors)
    return F.layer_norm(x, (x.shape[-1],), W, b)


def _experts(layer: Config, tensors: Tensors, x: Tensor) -> Tensor:
    weights = [tensors[f"{layer['name']}.{p['name']}"] for p in layer["parameters"]]
    return experts(x, weights, layer["layout"])


def experts(x: Tensor, weights: list[Tensor], layout: str) -> Tensor:
    """Row i of x (n, in) through expert i mod E of each stack in turn, tanh in between."""
    for position, W in enumerate(weights):
        x = torch.tanh(x) if position else x
        which = torch.arange(x.shape[0]) % W.shape[0]
        x = torch.einsum("ni,noi->no" if layout == "out_in" else "ni,nio->no", x, W[which])
    return x


def _mix(layer: Config, x: Tensor) -> Tensor:
    """Query, key and value of a fused projection: v (1 + mean q) (1 + mean k)."""
    q, k, v = x.split(layer["sizes"], dim=-1)
    return v * (1 + q.mean(-1, keepdim=True)) * (1 + k.mean(-1, keepdim=True))


OPERATIONS: dict[str, Any] = {
    "linear": _linear,
    "conv1d": _conv1d,
    "embedding": _embedding,
    "conv2d": _conv2d,
    "norm": _norm,
    "experts": _experts,
    "mix": lambda layer, tensors, x: _mix(layer, x),
    "tanh": lambda layer, tensors, x: torch.tanh(x),
    "flatten": lambda layer, tensors, x: x.flatten(1),
}


class Experts(nn.Module):
    """Stacked expert weights as bare parameters, the way mixture models hold them."""

    def __init__(self, layer: Config) -> None:
        super().__init__()
        self.layout = layer["layout"]
        self.is_transposed = self.layout == "in_out"
        self.order = [p["name"] for p in layer["parameters"]]
        for p in layer["parameters"]:
            setattr(self, p["name"], nn.Parameter(torch.zeros(p["shape"])))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, in) -> (n, out)."""
        return experts(x, [getattr(self, name) for name in self.order], self.layout)


def _conv1d_module(layer: Config) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(layer["out"], layer["in"])


MODULES: dict[str, Any] = {
    "linear": lambda la: nn.Linear(la["in"], la["out"], bias=la["bias"]),
    "conv1d": _conv1d_module,
    "embedding": lambda la: nn.Embedding(la["number"], la["dim"]),
    "conv2d": lambda la: nn.Conv2d(la["in"], la["out"], la["kernel"], la.get("stride", 1), bias=la["bias"]),
    "norm": lambda la: nn.LayerNorm(la["dim"]),
    "experts": Experts,
}


def _container(path: str, names: Sequence[str]) -> nn.Module:
    """What holds the layers whose names begin so: blocks that are numbered from zero are a list, as in any model."""
    below = {n.removeprefix(f"{path}.").partition(".")[0] for n in names if n.startswith(f"{path}.")}
    return nn.ModuleList() if below == {str(i) for i in range(len(below))} else nn.Module()


class ChainModel(nn.Module):
    """A base of the corpus with its weights; every layer a submodule of its own name."""

    def __init__(self, config: Config, tensors: Tensors, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.chain: Config = config
        names = [layer["name"] for layer in config["layers"] if "name" in layer]
        for layer in config["layers"]:
            if "name" in layer:
                self._place(layer["name"], MODULES[layer["kind"]](layer), names)
        self.to(dtype or getattr(torch, config["dtype"]))
        tied = config.get("tied", {})
        self.load_state_dict({**tensors, **{new: tensors[old] for new, old in tied.items()}})
        for new, old in tied.items():
            self.get_submodule(new.rpartition(".")[0]).weight = self.get_parameter(old)
        self.eval()

    def _place(self, name: str, module: nn.Module, names: Sequence[str]) -> None:
        node: nn.Module = self
        *path, last = name.split(".")
        for depth, part in enumerate(path, 1):
            if not hasattr(node, part):
                node.add_module(part, _container(".".join(path[:depth]), names))
            node = getattr(node, part)
        node.add_module(last, module)

    def forward(self, x: Tensor) -> Tensor:
        """Token ids or numbers in, logits out."""
        for layer in self.chain["layers"]:
            named = "name" in layer
            x = self.get_submodule(layer["name"])(x) if named else OPERATIONS[layer["kind"]](layer, {}, x)
        return x

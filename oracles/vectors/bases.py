"""The bases of the corpus: a few layers, no two sizes equal where a mix-up of them should show, nothing square."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from oracles.vectors.chain import Config

TANH: Config = {"kind": "tanh"}


def numbers(name: str, shape: tuple[int, ...], low: int = 8, high: int = 100) -> Tensor:
    """Multiples of 1/64 of both signs, none near zero: the same everywhere, and exact in every dtype used."""
    draw = random.Random(name)
    count = 1
    for size in shape:
        count *= size
    span = high - low + 1
    entries = [
        (low + int(draw.random() * span)) * (1 if draw.random() < 0.5 else -1) / 64 for _ in range(count)
    ]
    return torch.tensor(entries, dtype=torch.float64).reshape(shape)


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Config:
    """One linear layer."""
    return {"name": name, "kind": "linear", "in": inputs, "out": outputs, "bias": bias}


def conv1d(name: str, inputs: int, outputs: int) -> Config:
    """One layer whose weight is (in, out), with a bias."""
    return {"name": name, "kind": "conv1d", "in": inputs, "out": outputs, "bias": True}


def conv2d(name: str, inputs: int, outputs: int, kernel: list[int], bias: bool = True, **more: Any) -> Config:
    """One convolution."""
    return {
        "name": name,
        "kind": "conv2d",
        "in": inputs,
        "out": outputs,
        "kernel": kernel,
        "bias": bias,
        **more,
    }


def embedding(name: str, number: int, dim: int) -> Config:
    """One table of vectors."""
    return {"name": name, "kind": "embedding", "number": number, "dim": dim}


def chain_of(
    name: str, layers: list[Config], shape: list[int], dtype: str = "float32", **more: Any
) -> Config:
    """A base of these layers, tanh in between, for inputs of ``shape``."""
    kind = "tokens" if layers[0]["kind"] == "embedding" else "numbers"
    chain: list[Config] = []
    for layer in layers:
        chain += [layer, TANH] if layer["kind"] in ("linear", "conv1d", "conv2d") else [layer]
    while chain[-1] is TANH:
        chain.pop()
    return {
        "format": 1,
        "name": name,
        "dtype": dtype,
        "input": {"kind": kind, "shape": shape},
        "layers": chain,
        **more,
    }


def _deep(prefix: str, indices: tuple[int, ...]) -> list[Config]:
    layers: list[Config] = []
    for i in indices:
        layers += [linear(f"{prefix}{i}.q_proj", 5, 7), linear(f"{prefix}{i}.o_proj", 7, 5, bias=False)]
    return layers


def _mlp(name: str, dtype: str = "float32") -> Config:
    layers = [
        linear("layers.0.q_proj", 5, 7),
        linear("layers.0.k_proj", 7, 4, bias=False),
        linear("layers.1.q_proj", 4, 9),
        linear("layers.1.k_proj", 9, 6, bias=False),
        linear("head", 6, 3),
    ]
    return chain_of(name, layers, [2, 5], dtype)


def _experts(name: str, layout: str, parameters: list[tuple[str, int, int]], count: int) -> Config:
    shaped = [
        {"name": p, "shape": [count, o, i] if layout == "out_in" else [count, i, o]} for p, i, o in parameters
    ]
    stack = {"name": "mlp.experts", "kind": "experts", "layout": layout, "parameters": shaped}
    return chain_of(
        name, [linear("up", 4, parameters[0][1]), stack, linear("head", parameters[-1][2], 3)], [5, 4]
    )


def _language(name: str, tied: bool) -> Config:
    layers = [
        embedding("embed_tokens", 11, 6),
        linear("layers.0.up_proj", 6, 8),
        {"name": "norm", "kind": "norm", "dim": 8},
        linear("layers.0.down_proj", 8, 6 if tied else 5, bias=False),
        linear("lm_head", 6 if tied else 5, 11, bias=False),
    ]
    more: Config = (
        {"tie_word_embeddings": True, "tied": {"lm_head.weight": "embed_tokens.weight"}} if tied else {}
    )
    return chain_of(name, layers, [3], **more)


def _fused() -> Config:
    layers = [
        linear("attn.qkv_proj", 5, 15),
        {"kind": "mix", "sizes": [8, 3, 4]},
        linear("attn.o_proj", 4, 6, bias=False),
        linear("mlp.gate_up_proj", 6, 14, bias=False),
        linear("mlp.down_proj", 14, 3),
    ]
    chain = chain_of("fused", layers, [2, 5])
    chain["layers"] = [la for i, la in enumerate(chain["layers"]) if not (la is TANH and i == 1)]
    return chain


def _names() -> Config:
    layers = [
        linear("q_proj", 5, 7),
        linear("a.o", 7, 5),
        linear("encoder.q_proj", 5, 7),
        linear("b.o", 7, 5),
        linear("encoder.xq_proj", 5, 7),
        linear("c.o", 7, 5),
        linear("encoder.q_proj_norm", 5, 7),
        linear("default.q_proj", 7, 5),
        linear("lora_A.q_proj", 5, 7),
        linear("my_base_model.q_proj", 7, 5),
    ]
    return chain_of("names", layers, [2, 5])


def _wrapped() -> Config:
    layers = [
        linear("model.layers.0.q_proj", 5, 7),
        linear("model.layers.0.o_proj", 7, 5),
        linear("layers.0.q_proj", 5, 7),
        linear("layers.0.o_proj", 7, 5),
        linear("model.model.layers.0.q_proj", 5, 7),
        linear("head", 7, 3),
    ]
    return chain_of("wrapped", layers, [2, 5])


def _conv() -> Config:
    flat: Config = {"kind": "flatten"}
    layers = [
        conv2d("conv", 2, 3, [3, 3]),
        conv2d("point", 3, 5, [1, 1], bias=False),
        conv2d("wide", 5, 4, [2, 3], stride=2),
        flat,
        linear("head", 16, 3),
    ]
    return chain_of("conv", layers, [2, 2, 6, 7])


def _gpt() -> Config:
    layers = [
        conv1d("h.0.c_attn", 5, 9),
        conv1d("h.0.c_proj", 9, 4),
        conv1d("h.1.c_fc", 4, 7),
        linear("head", 7, 3),
    ]
    return chain_of("gpt", layers, [2, 5])


_BASES = (
    _mlp("mlp"),
    _mlp("mlp_bf16", "bfloat16"),
    _mlp("mlp_fp16", "float16"),
    chain_of("deep", [*_deep("model.layers.", (0, 1, 2, 10, 11)), linear("head", 5, 3)], [2, 5]),
    _gpt(),
    _language("language", tied=False),
    _language("tied", tied=True),
    _conv(),
    _fused(),
    _names(),
    _wrapped(),
    _experts("experts_out_in", "out_in", [("gate_up_proj", 5, 8), ("down_proj", 8, 6)], 3),
    _experts("experts_in_out", "in_out", [("gate_up_proj", 5, 8), ("down_proj", 8, 6)], 3),
    {**_mlp("sharded"), "shards": 3},
)
BASES: dict[str, Config] = {base["name"]: base for base in _BASES}


def base_tensors(config: Config) -> dict[str, Tensor]:
    """Every tensor of a base, float64 numbers that its dtype holds exactly."""
    tensors: dict[str, Tensor] = {}
    seed = {"mlp_bf16": "mlp", "mlp_fp16": "mlp", "sharded": "mlp"}.get(config["name"], config["name"])
    for layer in config["layers"]:
        for tensor, shape in tensor_shapes(layer).items():
            tensors[tensor] = numbers(f"{seed}/{tensor}", shape)
    for new in config.get("tied", {}):
        del tensors[new]
    return tensors


def tensor_shapes(layer: Config) -> dict[str, tuple[int, ...]]:
    """Full tensor name -> shape, of one layer of a base's config."""
    name, kind = layer.get("name", ""), layer["kind"]
    if kind == "experts":
        return {f"{name}.{p['name']}": tuple(p["shape"]) for p in layer["parameters"]}
    shapes: dict[str, tuple[int, ...]] = {}
    if kind == "linear":
        shapes["weight"] = (layer["out"], layer["in"])
    elif kind == "conv1d":
        shapes["weight"] = (layer["in"], layer["out"])
    elif kind == "embedding":
        shapes["weight"] = (layer["number"], layer["dim"])
    elif kind == "conv2d":
        shapes["weight"] = (layer["out"], layer["in"], *layer["kernel"])
    elif kind == "norm":
        shapes["weight"] = (layer["dim"],)
    if kind == "norm" or layer.get("bias"):
        shapes["bias"] = (layer["dim"] if kind == "norm" else layer["out"],)
    return {f"{name}.{tensor}": shape for tensor, shape in shapes.items()}


def inputs(config: Config) -> list[Tensor]:
    """Three inputs: token ids, or numbers."""
    shape = tuple(config["input"]["shape"])
    if config["input"]["kind"] == "tokens":
        number = config["layers"][0]["number"]
        return [torch.tensor([(7 * i + 3 * j + 1) % number for j in range(shape[0])]) for i in range(3)]
    return [numbers(f"{config['name']}/input/{i}", shape) for i in range(3)]


def layer_of(config: Config, module: str) -> Config:
    """A base's layer by its name; raises KeyError."""
    for layer in config["layers"]:
        if layer.get("name") == module:
            return layer
    raise KeyError(module)

"""How a base layer or a model is built again in the subject's process: classes and settings, never code."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.cases.quantised_from import quantised_from
from oracles.implementation import Unsupported

CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
# class of torch's -> the constructor's arguments that its instances keep under the same name
KEPT: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Embedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Dropout: ("p",),
    **dict.fromkeys((nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Flatten), ()),
}
BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm)
TREES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def recipe_of(module: nn.Module) -> dict[str, Any]:
    """What the worker builds ``module`` from. Raises Unsupported for what neither torch nor transformers defines."""
    kind, origin = type(module), quantised_from(module)
    if origin is not None:
        sizes = {"out_features": origin.weight.shape[0], "in_features": origin.weight.shape[1]}
        arguments = {**sizes, "bias": origin.bias is not None, "quantiser": origin.quantiser}
        return {"kind": "quantised", "class": kind.__name__, "arguments": arguments}
    if kind in KEPT:
        arguments = {name: _plain(getattr(module, name)) for name in KEPT[kind]}
        if kind in BIASED:
            arguments["bias"] = getattr(module, "bias", None) is not None
        return {"kind": "torch", "class": kind.__name__, "arguments": arguments}
    if kind.__bases__ == (nn.Embedding,) and "embed_scale" in dict(module.named_buffers(recurse=False)):
        arguments = {name: getattr(module, name) for name in KEPT[nn.Embedding]}
        return {"kind": "scaled_embedding", "class": kind.__name__, "arguments": arguments}
    if kind in TREES:
        children = {name: recipe_of(child) for name, child in module.named_children()}
        return {"kind": "tree", "class": kind.__name__, "children": children}
    chain: Any = getattr(module, "chain", None)
    if isinstance(chain, dict) and "layers" in chain:
        return _chain(module)
    if kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D":
        return {"kind": "conv1d", "class": "Conv1D", "arguments": {"nf": module.nf, "nx": module.nx}}
    if kind.__module__.startswith("transformers.") and hasattr(module, "config"):
        return _transformer(module)
    raise Unsupported(f"a {kind.__name__} cannot be built in the subject's own environment")


def _chain(module: Any) -> dict[str, Any]:
    """A chain of layers and plain operations, as the checkpoint corpus has it: its steps, and each layer's recipe."""
    steps: list[list[Any]] = []
    for layer in module.chain["layers"]:
        if "name" in layer:
            steps.append(["layer", layer["name"]])
        elif layer["kind"] in ("tanh", "flatten", "mix"):
            steps.append([layer["kind"], layer.get("sizes")])
        else:
            raise Unsupported(
                f"a chain with {layer['kind']} cannot be built in the subject's own environment"
            )
    children = {path: recipe_of(module.get_submodule(path)) for step, path in steps if step == "layer"}
    return {"kind": "chain", "class": type(module).__name__, "steps": steps, "children": children}


def _transformer(module: nn.Module) -> dict[str, Any]:
    """The settings that the model was made with, where it carries them: those mean the same in every release."""
    config: Any = module.config
    settings = getattr(module, "built_from", None)
    if settings is None:
        settings = {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
    return {
        "kind": "transformers",
        "class": type(module).__name__,
        "config": type(config).__name__,
        "settings": _plain(settings),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value

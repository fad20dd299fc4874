"""A base layer whose output is made to want a gradient: a leaf of autograd's graph where nothing before it does."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def with_leaf_output(base: Module) -> Module:
    """The layer, with the hook of transformers' ``enable_input_require_grads``, which hooks an embedding this way."""
    base.register_forward_hook(_wants_gradient)
    return base


def has_leaf_output(module: nn.Module) -> bool:
    """Whether :func:`with_leaf_output` has been here; a process that builds the layer anew hooks its own."""
    return _wants_gradient in module._forward_hooks.values()


def _wants_gradient(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True)

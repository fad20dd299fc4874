"""Quantised linear layers: their weight as a matrix of numbers, and back.

Known are bitsandbytes (4 and 8 bit) and torchao. Neither is imported unless a layer of its own is met.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .kinds import dense

__all__ = ["dequantised", "flavour", "is_quantised", "requantised", "write_problem"]


def flavour(weight: Any) -> str | None:
    """Which library quantised a weight: "bnb4", "bnb8", "torchao", or None for one that none of them did."""
    if dense(weight) or not isinstance(weight, Tensor) or weight.is_meta:
        return None
    if getattr(weight, "quant_state", None) is not None:
        return "bnb4"
    if type(weight).__name__ == "Int8Params":
        return "bnb8"
    return "torchao" if type(weight).__module__.startswith("torchao.") else None


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer's weight is quantised in one of the known ways."""
    return flavour(layer.weight) is not None


def dequantised(layer: nn.Module) -> Tensor | None:
    """The weight (out, in) that the quantised layer computes with; None for a layer that is not one of these."""
    weight: Any = layer.weight
    kind = flavour(weight)
    with torch.no_grad():
        if kind == "bnb4":
            return _bitsandbytes().dequantize_4bit(weight.data, weight.quant_state)
        if kind == "bnb8":
            return _bitsandbytes().int8_vectorwise_dequant(weight.data, _scales(layer))
        return weight.dequantize() if kind == "torchao" else None


def _bitsandbytes() -> Any:
    return import_module("bitsandbytes.functional")


def _scales(layer: Any) -> Tensor:
    """The row scales of an 8-bit layer, which move from its weight to its state at the first call."""
    scales = layer.weight.SCB
    return layer.state.SCB if scales is None else scales


def write_problem(layer: nn.Module) -> str | None:
    """Why :func:`requantised` cannot write the layer's format, or None if it can, or need not."""
    weight: Any = layer.weight
    if flavour(weight) != "torchao" or type(weight).__name__ == "Int8Tensor":
        return None
    return f"its weight is quantised in a format that cannot be written ({type(weight).__name__})"


def requantised(layer: nn.Module, W: Tensor) -> nn.Parameter:
    """``W`` (out, in) quantised as the layer's weight is. Raises ValueError for a format it cannot write."""
    weight: Any = layer.weight
    kind = flavour(weight)
    if kind == "bnb4":
        made = type(weight)(
            W.to(weight.quant_state.dtype), requires_grad=False, quant_type=weight.quant_type,
            blocksize=weight.blocksize, compress_statistics=weight.compress_statistics,
            quant_storage=weight.quant_storage, module=layer,
        )  # fmt: skip
        return made.to(weight.device)
    if kind == "bnb8":
        # The layer moves a weight's scales into its state at the next call; the old weight takes its own back.
        weight.CB, weight.SCB = weight.data, _scales(layer)
        return type(weight)(W.half(), requires_grad=False, has_fp16_weights=False).to(weight.device)
    if problem := write_problem(layer):
        raise ValueError(problem)
    return nn.Parameter(_int8(weight, W), requires_grad=False)


def _int8(weight: Any, W: Tensor) -> Tensor:
    """torchao's int8 with the old weight's granularity: rows, groups or the whole."""
    granular = import_module("torchao.quantization.granularity")
    rows, columns = weight.block_size
    shape = tuple(weight.shape)
    whole = granular.PerTensor() if (rows, columns) == shape else granular.PerGroup(columns)
    granularity = granular.PerRow() if (rows, columns) == (1, shape[1]) else whole
    return type(weight).from_hp(W.to(weight.dtype), granularity)

"""Tensors that are spread over several processes: torch's DTensor, as FSDP2 and tensor parallelism make them."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

__all__ = ["is_sharded", "whole"]


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; torch.distributed is not imported to tell."""
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; every process that holds a part has to ask for it."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor

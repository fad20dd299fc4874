"""A linear layer around values that are there already."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain(weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> nn.Linear:
    """A linear layer of its own with copies of ``weight`` (out, in) and ``bias`` (out,), in their dtype or ``dtype``.

    Made without the constructor, which would draw a start first; going by the meta device, as
    ``nn.utils.skip_init`` does, takes ten times as long.
    """
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = _copied(weight, dtype)
    layer.register_parameter("bias", None if bias is None else _copied(bias, dtype))
    return layer


def _copied(value: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(
        value.detach().to(dtype or value.dtype, copy=True, memory_format=torch.contiguous_format)
    )

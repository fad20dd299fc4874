"""A library that makes a plain embedding of whatever embedding it is given, in a file of its own."""

from __future__ import annotations

from torch import nn


def plain(layer: nn.Embedding) -> nn.Embedding:
    """An embedding of the layer's weight, which the layer's own forward may have done more with."""
    return nn.Embedding.from_pretrained(layer.weight, padding_idx=layer.padding_idx)

"""Kinds of layers: how each one's weight is a matrix W (out, in), and how a low-rank update reaches its output.

A kind is a class of static methods over the layer that it is handed; :func:`kind_of` finds it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

__all__ = ["KINDS", "Conv1D", "Conv2d", "Embedding", "Kind", "Linear", "is_linear", "kind_of"]


class Linear:
    """``nn.Linear``, quantised subclasses too: W (out, in) as it is stored."""

    name = "linear"
    sums_in_one = (
        True  # whether the output is x Wᵀ, row by row, so that an update can be added within its product
    )

    @staticmethod
    def takes(layer: Any) -> bool:
        return isinstance(layer, nn.Linear)

    @staticmethod
    def features(layer: Any) -> tuple[int, int]:
        """(out, in); a packed weight has another shape, so the layer is asked."""
        return layer.out_features, layer.in_features

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """The layer's weight tensor as W (out, in), a view."""
        return weight

    @staticmethod
    def stored(W: Tensor, layer: Any) -> Tensor:
        """W (out, in) laid out as the layer stores it."""
        return W.contiguous()

    @staticmethod
    def factors(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B. Raises ValueError for a rank that the layer cannot have."""
        return (rank, layer.in_features), (layer.out_features, rank)

    @staticmethod
    def start(A: Tensor, B: Tensor) -> None:
        """A uniform in ±1/√fan_in, which is kaiming-uniform with a = √5; B zero."""
        bound = 1 / math.sqrt(A[0].numel())
        nn.init.uniform_(A, -bound, bound)
        nn.init.zeros_(B)

    @staticmethod
    def product(A: Tensor, B: Tensor) -> Tensor:
        """B A as a matrix of W's shape."""
        return B @ A

    @staticmethod
    def apply(layer: Any, x: Tensor, W: Tensor) -> Tensor:
        """What the layer gives for x with the weight matrix W and no bias."""
        return F.linear(x, W)

    @staticmethod
    def down(layer: Any, x: Tensor, A: Tensor) -> Tensor:
        """The adapter's r coordinates of x."""
        return F.linear(x, A)

    @staticmethod
    def up(layer: Any, h: Tensor, B: Tensor) -> Tensor:
        """The change of the output that those coordinates make."""
        return F.linear(h, B)

    @staticmethod
    def per_output(v: Tensor) -> Tensor:
        """A vector (out,) shaped to meet the layer's output."""
        return v

    @staticmethod
    def merge_problem(layer: Any) -> str | None:
        """Why a low-rank update cannot be folded into the layer's weight, or None if it can."""
        return None


class Conv1D(Linear):
    """GPT-2's ``Conv1D``: linear, the weight stored (in, out). Known by its class name, so that transformers need
    not be installed."""

    name = "conv1d"

    @staticmethod
    def takes(layer: Any) -> bool:
        return any(base.__name__ == "Conv1D" for base in type(layer).__mro__) and hasattr(layer, "nf")

    @staticmethod
    def features(layer: Any) -> tuple[int, int]:
        in_, out = layer.weight.shape
        return out, in_

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        return weight.t()

    @staticmethod
    def stored(W: Tensor, layer: Any) -> Tensor:
        return W.t().contiguous()

    @staticmethod
    def factors(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        out, in_ = Conv1D.features(layer)
        return (rank, in_), (out, rank)


class Embedding(Conv1D):
    """``nn.Embedding``: a linear layer on one-hot rows, in = num_embeddings, out = embedding_dim, stored (in, out).

    The scale that some models multiply the output with (``embed_scale``) applies to the update too.
    ``max_norm`` is the base's own affair: the factors are never renormalised.
    """

    name = "embedding"
    sums_in_one = False

    @staticmethod
    def takes(layer: Any) -> bool:
        return isinstance(layer, nn.Embedding)

    @staticmethod
    def start(A: Tensor, B: Tensor) -> None:
        """A zero and B standard normal: most tokens never occur, and those that do not stay the base's."""
        nn.init.zeros_(A)
        nn.init.normal_(B)

    @staticmethod
    def apply(layer: Any, x: Tensor, W: Tensor) -> Tensor:
        return Embedding.up(layer, F.embedding(x, W.t()), None)

    @staticmethod
    def down(layer: Any, x: Tensor, A: Tensor) -> Tensor:
        """Columns of A; the padding token's gets no gradient, as its row of W would get none."""
        padding, by_frequency = layer.padding_idx, layer.scale_grad_by_freq
        return F.embedding(x, A.t(), padding_idx=padding, scale_grad_by_freq=by_frequency)

    @staticmethod
    def up(layer: Any, h: Tensor, B: Tensor | None) -> Tensor:
        y = h if B is None else F.linear(h, B)
        scale = getattr(layer, "embed_scale", None)
        return y if scale is None else y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)

    @staticmethod
    def merge_problem(layer: Any) -> str | None:
        if layer.max_norm is None:
            return None
        return f"an embedding with max_norm={layer.max_norm} would renormalise the merged rows"


class Conv2d(Linear):
    """``nn.Conv2d``: W (out, in · kh · kw) is the flattened weight.

    A (r, in, kh, kw) is a convolution with the layer's stride, padding and dilation, B (out, r, 1, 1) one of
    1 × 1. With groups, A sees all input channels and B (out, r/groups, 1, 1) is grouped, as in PEFT: the
    update is then a dense convolution, which the layer's grouped weight cannot hold.
    """

    name = "conv2d"
    sums_in_one = False

    @staticmethod
    def takes(layer: Any) -> bool:
        return isinstance(layer, nn.Conv2d)

    @staticmethod
    def features(layer: Any) -> tuple[int, int]:
        return layer.out_channels, layer.in_channels

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        return weight.flatten(1)

    @staticmethod
    def stored(W: Tensor, layer: Any) -> Tensor:
        return W.reshape(layer.weight.shape)

    @staticmethod
    def factors(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        groups: int = layer.groups
        if rank % groups:
            raise ValueError(f"a convolution with groups={groups} needs a rank that it divides, got {rank}")
        out, in_ = Conv2d.features(layer)
        return (rank, in_, *layer.kernel_size), (out, rank // groups, 1, 1)

    @staticmethod
    def product(A: Tensor, B: Tensor) -> Tensor:
        return B.flatten(1) @ A.flatten(1)

    @staticmethod
    def apply(layer: Any, x: Tensor, W: Tensor) -> Tensor:
        return Conv2d.convolve(layer, x, W.view(layer.weight.shape), layer.groups)

    @staticmethod
    def down(layer: Any, x: Tensor, A: Tensor) -> Tensor:
        return Conv2d.convolve(layer, x, A, 1)

    @staticmethod
    def up(layer: Any, h: Tensor, B: Tensor) -> Tensor:
        return F.conv2d(h, B, groups=layer.groups)

    @staticmethod
    def convolve(layer: Any, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
        """The layer's own stride, padding and dilation with another kernel."""
        padding = layer.padding
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            padding = 0
        return F.conv2d(x, kernel, None, layer.stride, padding, layer.dilation, groups)

    @staticmethod
    def per_output(v: Tensor) -> Tensor:
        return v[:, None, None]

    @staticmethod
    def merge_problem(layer: Any) -> str | None:
        if layer.groups == 1:
            return None
        return f"the update is a dense convolution, which a weight with groups={layer.groups} cannot hold"


Kind = type[Linear]
KINDS: tuple[Kind, ...] = (Conv1D, Linear, Embedding, Conv2d)


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer; None for one that no adapter can sit on."""
    return next((kind for kind in KINDS if kind.takes(layer)), None)


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is ``nn.Linear`` (subclasses too) or ``Conv1D``, which every variant takes."""
    return kind_of(layer) in (Linear, Conv1D)


def is_lazy(layer: nn.Module) -> bool:
    """Whether it has no shape yet."""
    return isinstance(layer.weight, UninitializedParameter)


def never_called(layer: nn.Module) -> bool:
    """Whether it is nn.MultiheadAttention's out_proj, whose weight is read past its forward and its hooks."""
    return any(base.__name__ == "NonDynamicallyQuantizableLinear" for base in type(layer).__mro__)


def dense(weight: object) -> bool:
    """Whether a weight is a plain floating-point tensor with values."""
    floating = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    plain = isinstance(weight, Tensor) and type(weight) in (Tensor, nn.Parameter)
    return plain and weight.dtype in floating and not weight.is_meta  # type: ignore[attr-defined]

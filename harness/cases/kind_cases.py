"""Layers of other kinds than linear, each as the matrix product that it is: y = rows(x) Wᵀ + b.

A convolution's rows are its patches (unfolding), an embedding's the one-hot vectors of its tokens; W (out, in) is the
flattened kernel, a grouped one with zeros where a group does not look. The canonical tensors keep their shapes, with
that in and out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate
from operator import mul
from typing import Any, Literal, cast

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.cases.layer_cases import Case
from harness.cases.life_cases import offered_rank
from harness.cases.quantised_from import note_quantised
from oracles.implementation import AdapterSpec
from oracles.variants import Variant

KINDS = ("conv1d", "embedding", "conv2d", "quantised")
SIDE = 6  # of the images
# What a layer of a kind may have that not every library takes; each is asked apart, so that none hides another's fault.
OPTIONS: dict[str, Any] = {
    "dilation": 1,
    "groups": 1,
    "padding_mode": "zeros",
    "oblong": False,
    "embed_scale": 1.0,
    "tied": False,
}

OPTION_WORDS = {
    "dilation": "dilation",
    "groups": "groups",
    "padding_mode": "circular padding",
    "oblong": "an oblong kernel",
    "embed_scale": "a scale",
    "tied": "a tied head",
}
WORDS = {
    "conv1d": "a Conv1D",
    "embedding": "an embedding",
    "conv2d": "a convolution",
    "quantised": "a quantised layer",
}


@dataclass(frozen=True)
class KindCase(Case):
    """One layer of a kind. ``in_features``: inputs of one row, for a convolution channels times kernel positions.

    ``kernel`` to ``oblong``: a convolution's, an ``oblong`` one with one more of kernel, stride and padding along an
    image's rows; ``padding_idx``, ``embed_scale``: an embedding's, which is ``tied`` where a linear head has the same
    weight.
    """

    kind: str = "conv1d"
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    padding_mode: Literal["zeros", "circular"] = "zeros"
    oblong: bool = False
    padding_idx: int | None = None
    embed_scale: float = 1.0
    tied: bool = False
    quantiser: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is a layer that every library which takes the kind takes."""
        return not options_of(vars(self))

    @property
    def what(self) -> str:
        """The kind and its options, for a sentence."""
        options = [f"{name} {getattr(self, name)}" for name in options_of(vars(self))]
        return f"{self.kind} layers" + (f" with {', '.join(options)}" if options else "")

    @property
    def words(self) -> str:
        """The kind as prose has it, and what is not plain about the layer: "a convolution with dilation"."""
        options = " and ".join(OPTION_WORDS[name] for name in options_of(vars(self)))
        return WORDS[self.kind] + (f" with {options}" if options else "")

    def named(self, words: str) -> str:
        """A sentence on "this kind of layer" as one on the case's."""
        return words.replace("this kind of layer", self.words)

    @property
    def channels(self) -> int:
        """Input channels of a convolution."""
        return self.in_features // self.positions

    @property
    def positions(self) -> int:
        """How many places a convolution's kernel has."""
        down, along = self.two(self.kernel)
        return down * along

    def two(self, number: int) -> tuple[int, int]:
        """A convolution's number for the columns and for the rows of an image."""
        return number, number + self.oblong

    @cached_property
    def weight(self) -> Tensor:
        """W (out, in), what the layer computes with: of a quantised layer, dequantised."""
        return self.drawn if self.kind != "quantised" else _dequantised(self.base())

    @cached_property
    def drawn(self) -> Tensor:
        """W before it is quantised."""
        return self._drawn_weight() * self.blocks

    @property
    def blocks(self) -> Tensor:
        """(out, in): one where the output's group looks at the input."""
        return self.mask(self.out_features, self.in_features).to(self.torch_dtype)

    def mask(self, rows: int, columns: int) -> Tensor:
        """(rows, columns): one where both are of the same group, which are as many rows and columns each."""
        of_row, of_column = (torch.arange(n) * self.groups // n for n in (rows, columns))
        return (of_row[:, None] == of_column[None, :]).double()

    def base(self, dtype: torch.dtype | None = None) -> Any:
        """A fresh layer of the kind with this case's weight and bias."""
        layer = MAKERS[self.kind](self)
        return layer if self.kind == "quantised" else layer.to(dtype or self.torch_dtype)

    @cached_property
    def input(self) -> Tensor:
        """x: (*batch, in), tokens (*batch, 4), or images (*batch, channels, side, side)."""
        generator = self.generator(2)
        if self.kind == "embedding":
            return torch.randint(0, self.in_features, (*self.batch, 4), generator=generator)
        if self.kind == "conv2d":
            shape: tuple[int, ...] = (*self.batch, self.channels, SIDE, SIDE)
        else:
            shape = (*self.batch, self.in_features)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.torch_dtype)

    def rows(self, x: Tensor) -> Tensor:
        """x as rows (n, in) in float64."""
        if self.kind == "embedding":
            return fn.one_hot(x, self.in_features).double().flatten(0, -2)
        if self.kind == "conv2d":
            return self._patches(x.double()).mT.flatten(0, 1)
        return x.double().flatten(0, -2)

    def _patches(self, x: Tensor) -> Tensor:
        """Images as the patches that the kernel meets, (batch, in, places); linear in ``x``."""
        down, along = self.two(self.padding)
        if self.padding_mode != "zeros":
            x, down, along = fn.pad(x, [along, along, down, down], mode=self.padding_mode), 0, 0
        return fn.unfold(x, self.two(self.kernel), self.dilation, (down, along), self.two(self.stride))

    def rows_from_the_corner(self, x: Tensor) -> Tensor:
        """A convolution's rows as of stride one, as many of them as the layer has outputs, from the image's start."""
        kernels, paddings = self.two(self.kernel), self.two(self.padding)
        patches = fn.unfold(x.double(), kernels, self.dilation, paddings)
        full = [SIDE + 2 * p - self.dilation * (k - 1) for k, p in zip(kernels, paddings, strict=True)]
        down, along = ((f - 1) // s + 1 for f, s in zip(full, self.two(self.stride), strict=True))
        return patches.unflatten(-1, full)[..., :down, :along].flatten(2).mT.flatten(0, 1)

    def of_first_group(self, value: Tensor) -> Tensor:
        """A canonical value (out, r) whose groups all stand where the first one's stands; others as they are."""
        if tuple(value.shape) != (self.out_features, self.spec.rank):
            return value
        own = value[self.mask(self.out_features, self.spec.rank).bool()].reshape(self.out_features, -1)
        return fn.pad(own, (0, self.spec.rank - own.shape[1]))

    def back(self, gradient: Tensor) -> Tensor:
        """∂L/∂rows as ∂L/∂x, for the kinds whose x has a gradient."""
        if self.kind != "conv2d":
            return gradient.reshape(self.input.shape)
        patches = gradient.reshape(self.batch[0], -1, self.in_features).mT
        with torch.enable_grad():
            x = torch.zeros_like(self.input, dtype=torch.float64, requires_grad=True)
            return torch.autograd.grad(self._patches(x), x, patches)[0]

    def cotangent_of(self, shape: torch.Size) -> Tensor:
        """G (n, out) in float64, the same for every layer of the case."""
        return torch.randn(shape, generator=self.generator(3), dtype=torch.float64)

    def outputs(self, y: Tensor) -> Tensor:
        """The layer's output as rows (n, out)."""
        return y.flatten(2).mT.flatten(0, 1) if self.kind == "conv2d" else y.flatten(0, -2)

    def matrix(self, name: str, live: Tensor) -> Tensor:
        """A slot's tensor, or its gradient, in the canonical shape: kernels flattened, groups with their zeros.

        Raises ValueError for a convolution's that has other rows than the canonical one, as many numbers or not.
        """
        shape = self.canonical_shape(name)
        if len(shape) == 2 and live.numel() * self.groups == shape[0] * shape[1] and self.groups > 1:
            if live.shape[0] != shape[0]:
                raise ValueError(f"{name} has {live.shape[0]} rows, expected {shape[0]}")
            spread = live.reshape(shape[0], -1).repeat(1, self.groups)
            return spread * self.mask(*shape).to(live.dtype)
        if self.kind == "conv2d" and shape[0] not in accumulate(live.shape, mul):
            raise ValueError(f"{name} has {live.shape[0]} rows, expected {shape[0]}")
        return live.reshape(shape)

    def live(self, name: str, matrix: Tensor, shape: torch.Size) -> Tensor:
        """A canonical value in the shape of a slot."""
        if matrix.dim() == 2 and matrix.numel() != shape.numel() and self.groups > 1:
            own = self.mask(*matrix.shape).bool()
            return matrix[own].reshape(shape)
        return matrix.reshape(shape)

    def canonical_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a canonical tensor of the layer's matrix."""
        tensor = self.variant.tensor(name)
        if tensor is None:
            raise KeyError(name)
        return tensor.shape(self.out_features, self.in_features, self.spec)

    def far(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """As of a linear layer; what joins a group's outputs to the rank has the group's zeros."""
        drawn = super().far(names)
        if self.groups == 1:
            return drawn
        joined = (self.out_features, self.spec.rank)
        return {n: v * self.mask(*v.shape) if tuple(v.shape) == joined else v for n, v in drawn.items()}

    def describe(self) -> dict[str, Any]:
        """The case in plain values: what matters of its kind."""
        told = {"kind": self.kind, **super().describe()}
        of_kind = {
            "conv2d": ("kernel", "stride", "padding", "dilation", "groups", "padding_mode"),
            "embedding": ("padding_idx", "embed_scale", "tied"),
            "quantised": ("quantiser",),
        }
        further = ("oblong",) if self.oblong else ()
        return {**told, **{name: getattr(self, name) for name in (*of_kind.get(self.kind, ()), *further)}}


@torch.no_grad()
def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def _conv1d(case: KindCase) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    bias = torch.zeros(case.out_features) if case.bias_vector is None else case.bias_vector
    return _filled(Conv1D(case.out_features, case.in_features).to(case.torch_dtype), case.weight.mT, bias)


class ScaledEmbedding(nn.Embedding):
    """An embedding whose output is multiplied by ``embed_scale``, as several models have it."""

    def __init__(self, tokens: int, width: int, embed_scale: float, padding_idx: int | None) -> None:
        super().__init__(tokens, width, padding_idx=padding_idx)
        self.register_buffer("embed_scale", torch.tensor(embed_scale), persistent=False)
        self.read_in: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        """As any module's; which files read the weight is kept: who takes it takes the layer."""
        if name == "weight" and "read_in" in self.__dict__:
            self.read_in.add(sys._getframe(1).f_code.co_filename)
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        """Tokens (...) -> (..., dim)."""
        scale = cast(Tensor, self.embed_scale)
        return super().forward(input) * scale.to(self.weight.dtype)


def _embedding(case: KindCase) -> nn.Module:
    sizes = (case.in_features, case.out_features)
    if case.embed_scale == 1.0:
        layer: nn.Module = nn.Embedding(*sizes, padding_idx=case.padding_idx)
    else:
        layer = ScaledEmbedding(*sizes, case.embed_scale, case.padding_idx)
    return _filled(layer.to(case.torch_dtype), case.weight.mT, None)


def _conv2d(case: KindCase) -> nn.Module:
    layer = nn.Conv2d(
        case.channels,
        case.out_features,
        case.two(case.kernel),
        case.two(case.stride),
        case.two(case.padding),
        case.dilation,
        case.groups,
        case.bias,
        case.padding_mode,
    ).to(case.torch_dtype)
    own = case.weight[case.blocks.bool()].reshape(layer.weight.shape)
    return _filled(layer, own, case.bias_vector)


def _int8_weight_only(linear: nn.Linear) -> nn.Module:
    """torchao's eight-bit weights, dequantised in the forward pass."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    held = nn.Sequential(linear)
    quantize_(held, Int8WeightOnlyConfig())
    return held[0]


def _bitsandbytes(linear: nn.Linear) -> nn.Module:
    """bitsandbytes' four-bit layer, quantised as it is moved."""
    from bitsandbytes import nn as bnb

    layer = bnb.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def _bitsandbytes_8bit(linear: nn.Linear) -> nn.Module:
    """bitsandbytes' eight-bit layer, likewise."""
    from bitsandbytes import nn as bnb

    layer = bnb.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def _dequantised(layer: Any) -> Tensor:
    """The weight (out, in) that a quantised layer computes with, asked of the layer itself."""
    with torch.no_grad():
        eye = torch.eye(layer.in_features)
        return (layer(eye) - layer(torch.zeros(1, layer.in_features))).mT


# How a linear layer is quantised; by the libraries that are there.
QUANTISERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    name: make
    for name, make in (
        ("torchao int8", _int8_weight_only),
        ("bitsandbytes 4 bit", _bitsandbytes),
        ("bitsandbytes 8 bit", _bitsandbytes_8bit),
    )
    if find_spec(name.split()[0]) is not None
}


def quantised(case: KindCase, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the case's sizes with another weight (out, in), quantised as the case's is."""
    linear = nn.Linear(case.in_features, case.out_features, bias is not None).requires_grad_(False)
    layer = QUANTISERS[case.quantiser](_filled(linear, weight, bias))
    note_quantised(layer, case.quantiser, weight, bias)
    return layer


MAKERS: dict[str, Callable[[KindCase], nn.Module]] = {
    "conv1d": _conv1d,
    "embedding": _embedding,
    "conv2d": _conv2d,
    "quantised": lambda case: quantised(case, case.drawn, case.bias_vector),
}
SHAPES: dict[str, tuple[dict[str, Any], ...]] = {
    "conv1d": tuple({"in_features": i, "out_features": o} for i, o in ((4, 6), (5, 3), (4, 4))),
    "quantised": tuple({"in_features": i, "out_features": o} for i, o in ((4, 6), (6, 5))),
    "embedding": (
        {"in_features": 7, "out_features": 4},
        {"in_features": 5, "out_features": 5, "padding_idx": 1},
        {"in_features": 6, "out_features": 4, "embed_scale": 2.5},
        {"in_features": 7, "out_features": 5, "tied": True},
    ),
    "conv2d": (
        {"in_features": 3, "out_features": 4},
        {"in_features": 2 * 9, "out_features": 3, "kernel": 3, "padding": 1},
        {"in_features": 3 * 4, "out_features": 5, "kernel": 2, "stride": 2},
        {"in_features": 2 * 9, "out_features": 4, "kernel": 3, "padding": 2, "dilation": 2},
        {"in_features": 4 * 4, "out_features": 6, "kernel": 2, "groups": 2},
        {"in_features": 2 * 9, "out_features": 3, "kernel": 3, "padding": 1, "padding_mode": "circular"},
        {"in_features": 2 * 2 * 3, "out_features": 4, "kernel": 2, "oblong": True},
    ),
}


def options_of(shape: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that a shape has on."""
    return tuple(name for name, usual in OPTIONS.items() if shape.get(name, usual) != usual)


def shapes_with(kind: str, option: str | None = None) -> list[dict[str, Any]]:
    """The table's shapes of a kind with this option alone, or without any; quantised ones once for all libraries."""
    wanted = () if option is None else (option,)
    return [shape for shape in SHAPES[kind] if options_of(shape) == wanted]


def of_kind(kind: str, option: str | None = None) -> Callable[[Variant], st.SearchStrategy[KindCase]]:
    """Layers of a kind, in every shape that the table has of them with this option alone, or without any."""
    wanted = () if option is None else (option,)

    def strategy(variant: Variant) -> st.SearchStrategy[KindCase]:
        shapes = [{"kind": kind, **shape} for shape in shapes_of(kind) if options_of(shape) == wanted]
        # A case all the same where nothing is there that quantises: the claim says so.
        shapes = shapes or [{"kind": kind, **SHAPES[kind][0]}]
        return st.sampled_from(shapes).flatmap(lambda shape: of_shape(variant, shape))

    return strategy


def in_dtype(dtype: str) -> Callable[[Variant], st.SearchStrategy[KindCase]]:
    """Settings for :func:`each_kind`, in one dtype."""
    return lambda variant: of_kind("conv1d")(variant).map(lambda case: replace(case, dtype=dtype))


def shapes_of(kind: str) -> list[dict[str, Any]]:
    """The kind's shapes; quantised ones by each library that is there."""
    if kind != "quantised":
        return list(SHAPES[kind])
    return [{**shape, "quantiser": name} for name in QUANTISERS for shape in SHAPES[kind]]


def each_kind(case: KindCase, kinds: Sequence[str], *, both: bool = False) -> Iterator[KindCase]:
    """A layer of every kind with the case's settings: the last of its plain shapes, which has the most to it.

    ``both``: two of every kind, one whose in and out differ and one where they are equal.
    """
    for kind in kinds:
        plain = [shape for shape in shapes_of(kind) if not options_of(shape)]
        for shape in oblong_and_square(plain) if both else plain[-1:]:
            yield _of_the_table(case, kind, shape)


def in_every_shape(case: KindCase) -> Iterator[KindCase]:
    """The case, and one with its settings of every other shape that the table has of its kind with its options on."""
    yield case
    own = options_of(vars(case))
    for shape in shapes_of(case.kind):
        if options_of(shape) == own and any(getattr(case, name) != value for name, value in shape.items()):
            yield _of_the_table(case, case.kind, shape)


def oblong_and_square(shapes: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The last shape whose in and out differ and the last where they are equal, by each library that quantises.

    Where none is square, the first of the two with as many outputs as inputs.
    """
    for quantiser in dict.fromkeys(shape.get("quantiser", "") for shape in shapes):
        own = [shape for shape in shapes if shape.get("quantiser", "") == quantiser]
        oblong = [shape for shape in own if shape["in_features"] != shape["out_features"]][-1:]
        equal = [shape for shape in own if shape["in_features"] == shape["out_features"]][-1:]
        yield from oblong
        yield from equal or [{**shape, "out_features": shape["in_features"]} for shape in oblong]


def square(case: KindCase) -> KindCase:
    """The case with as many outputs as it has inputs."""
    shape = {f.name: getattr(case, f.name) for f in fields(KindCase)[len(fields(Case)) :]}
    return _reshaped(case, {**shape, "in_features": case.in_features, "out_features": case.in_features})


def _of_the_table(case: KindCase, kind: str, shape: Mapping[str, Any]) -> KindCase:
    """The case with a shape of the table, and plain in whatever that does not name."""
    plain = {f.name: f.default for f in fields(KindCase)[len(fields(Case)) :]}
    return _reshaped(case, {**plain, "kind": kind, **shape})


def _reshaped(case: KindCase, shape: Mapping[str, Any]) -> KindCase:
    """The case with another shape, and what that shape takes of rank, bias and dtype."""
    out, in_ = shape["out_features"], shape["in_features"]
    ranks = [r for r in (case.spec.rank, 2, 1) if offered_rank(case.variant, out, in_, r)]
    return replace(
        case,
        spec=replace(case.spec, rank=ranks[0]),
        bias=case.bias and shape["kind"] != "embedding",
        dtype="float32" if shape["kind"] == "quantised" else case.dtype,
        **shape,
    )


@st.composite
def of_shape(
    draw: st.DrawFn, variant: Variant, shape: Mapping[str, Any], mode: str | None = None
) -> KindCase:
    """A layer of a kind and shape, in one of the variant's modes if one is named."""
    groups, out, in_ = shape.get("groups", 1), shape["out_features"], shape["in_features"]
    ranks = [r for r in (2, 4, 1, 3) if r % groups == 0 and offered_rank(variant, out, in_, r)]
    dtypes = [d for d in ("float32", "float64") if d not in variant.refuses_dtypes]
    if shape["kind"] == "quantised":
        dtypes = ["float32"]
    spec = AdapterSpec(variant.id, draw(st.sampled_from(ranks)), draw(st.sampled_from((3.5, 0.5))))
    return KindCase(
        variant.option(mode).put(spec, True) if mode else spec,
        # With a bias first: a claim of two cases has one that has it.
        bias=shape["kind"] != "embedding" and draw(st.sampled_from((True, False))),
        batch=(2,),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**16)),
        **shape,
    )

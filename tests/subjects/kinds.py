"""A right library on other kinds of layers: LoRA, DoRA and (IA)³ on Conv1D, embeddings, convolutions and our own
quantised layer, as one wrapper each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from tests.subjects.files import InSafetensors


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is eight-bit numbers and one step per row, as quantised layers have it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / step).round().to(torch.int8), requires_grad=False)
        self.register_buffer("step", step)
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def dequantize(self) -> Tensor:
        """The weight (out, in) that the layer computes with."""
        step: Tensor = self.step  # type: ignore[assignment]
        return self.weight.to(step.dtype) * step

    def forward(self, input: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return fn.linear(input, self.dequantize(), self.bias)


class RoundsInEvaluation(QuantisedLinear):
    """One that computes with its input rounded in evaluation mode, as eight-bit products do."""

    def forward(self, input: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return super().forward(input if self.training else input.bfloat16().to(input.dtype))


def rounding_quantiser(linear: nn.Linear) -> nn.Module:
    """The same for the table of quantisers."""
    return RoundsInEvaluation(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


def fake_quantiser(linear: nn.Linear) -> nn.Module:
    """Our own eight-bit layer in place of a library's."""
    return QuantisedLinear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


class LowRank(nn.Module):
    """LoRA on any of the kinds; ``product`` is the adapter's own path through the layer."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        self.base, self.r, self.spec = base.requires_grad_(False), spec.rank, spec
        self.s = spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)
        self.kind, self.kept = kind_of(base), None
        shapes = getattr(self, f"shapes_{self.kind}")()
        self.A = nn.Parameter(torch.randn(shapes[0], dtype=self.dtype))
        self.B = nn.Parameter(torch.zeros(shapes[1], dtype=self.dtype))
        self.drop = nn.Identity() if self.kind == "embedding" else nn.Dropout(spec.dropout)
        self.further, self.active = nn.ModuleDict(), ("default",)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(self.base, "step", self.base.weight).dtype

    def shapes_conv1d(self) -> tuple:
        return (self.r, self.base.nx), (self.base.nf, self.r)

    def shapes_quantised(self) -> tuple:
        return (self.r, self.base.in_features), (self.base.out_features, self.r)

    shapes_linear = shapes_quantised

    def shapes_embedding(self) -> tuple:
        return (self.r, self.base.num_embeddings), (self.base.embedding_dim, self.r)

    def shapes_conv2d(self) -> tuple:
        b = self.base
        return (self.r, b.in_channels, *b.kernel_size), (b.out_channels, self.r // b.groups, 1, 1)

    def slots(self) -> dict[str, Tensor]:
        return {"A": self.A, "B": self.B}

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.kept is not None else y + sum(each.update(x) for each in self.acting())

    def acting(self) -> list[LowRank]:
        """The adapters that are switched on."""
        return [self if name == "default" else self.further[name] for name in self.active]

    def update(self, x: Tensor) -> Tensor:
        """What this adapter adds to the base's output."""
        return self.s * getattr(self, f"path_{self.kind}")(self.drop(x))

    def fold_in(self) -> None:
        self.kept, self.base = self.base, self.merged()

    def take_out(self) -> None:
        self.base, self.kept = self.kept, None

    def path_conv1d(self, x: Tensor) -> Tensor:
        return x @ self.A.T @ self.B.T

    path_linear = path_quantised = path_conv1d

    def path_embedding(self, x: Tensor) -> Tensor:
        y = fn.embedding(x, self.A.T, padding_idx=self.base.padding_idx) @ self.B.T
        scale = getattr(self.base, "embed_scale", None)
        return y if scale is None else y * scale.to(y.dtype)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b, padding = self.base, self.base.padding
        if b.padding_mode != "zeros":
            x, padding = fn.pad(x, b._reversed_padding_repeated_twice, mode=b.padding_mode), 0
        return fn.conv2d(fn.conv2d(x, self.A, None, b.stride, padding, b.dilation), self.B, groups=b.groups)

    def merged(self) -> nn.Module:
        plain = copy.deepcopy(self.base)
        if getattr(plain, "groups", 1) > 1:
            raise Unsupported("a grouped convolution cannot hold the update")
        with torch.no_grad():
            update = self.s * self.B.flatten(1) @ self.A.flatten(1)
            self.fold(plain, update)
        return plain

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if self.kind == "quantised":
            new = QuantisedLinear(plain.dequantize() + update, plain.bias)
            plain.weight.copy_(new.weight)
            plain.step.copy_(new.step)
        elif self.kind == "conv2d":
            plain.weight += update.reshape(plain.weight.shape)
        else:
            plain.weight += update if self.kind == "linear" else update.T


def kind_of(base: nn.Module) -> str:
    """Which of the kinds it is."""
    if isinstance(base, QuantisedLinear):
        return "quantised"
    return {"Conv1D": "conv1d", "Conv2d": "conv2d", "Linear": "linear"}.get(type(base).__name__, "embedding")


class Library(InSafetensors):
    """LoRA alone, on every kind."""

    name, version = "kinds", "1"
    variants = frozenset({"lora"})
    layers = frozenset({"linear", "conv1d", "embedding", "conv2d", "quantised"})
    layer: type[LowRank] = LowRank

    def adapt(self, base: nn.Module, spec: AdapterSpec) -> Adapted:  # type: ignore[override]
        layer = self.layer(base, spec)
        return Adapted(layer, {n: Slot(t) for n, t in layer.slots().items()})

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        further = self.layer(adapted.module.base, spec)
        adapted.module.further[name] = further
        return Adapted(adapted.module, {n: Slot(t) for n, t in further.slots().items()})

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        adapted.module.active = tuple(names)

    def merge(self, adapted: Adapted) -> nn.Module:  # type: ignore[override]
        return adapted.module.merged()

    def merge_in_place(self, adapted: Adapted) -> None:
        adapted.module.fold_in()

    def unmerge(self, adapted: Adapted) -> None:
        adapted.module.take_out()


@dataclass(frozen=True)
class BrokenKind:
    """A wrong library, the claim that finds it out, and the fault that the finding names, if one does."""

    name: str
    make: Callable[[], Implementation]
    claim: str
    says: str = ""
    variant: str = "lora"

    @property
    def what(self) -> str:
        """The class's docstring."""
        return str(self.make.__doc__).strip()


BROKEN_KINDS: list[BrokenKind] = []


def broken(claim: str, says: str = "") -> Callable[[type[LowRank]], type[LowRank]]:
    """Register a layer that is wrong."""

    def register(cls: type[LowRank]) -> type[LowRank]:
        wrong = type(cls.__name__, (Library,), {"layer": cls, "__doc__": cls.__doc__})
        BROKEN_KINDS.append(BrokenKind(cls.__name__, wrong, f"layers.{claim}", says))
        return cls

    return register


@broken("conv1d", "transposed")
class TransposedLayout(LowRank):
    """The factors are laid out as the weight is stored, which raises nothing where the layer is square."""

    def path_conv1d(self, x: Tensor) -> Tensor:
        if self.base.nx != self.base.nf:
            return super().path_conv1d(x)
        return x @ (self.B @ self.A)


class Undropped(LowRank):
    """Dropout is accepted for one kind, and left out there."""

    without = ""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        self.drop = nn.Identity() if self.kind == self.without else self.drop


@broken("dropout_conv1d", "undropped")
class UndroppedConv1D(Undropped):
    """Dropout is kept for linear layers, and accepted for a Conv1D."""

    without = "conv1d"


@broken("dropout_conv2d", "undropped")
class UndroppedConvolution(Undropped):
    """The same of a convolution, as loralib's has it."""

    without = "conv2d"


@broken("dropout_quantised", "undropped")
class UndroppedQuantised(Undropped):
    """The same over a quantised weight, whose path was written beside the other."""

    without = "quantised"


@broken("dropout_conv2d", "wrong_rate")
class DropsHalf(LowRank):
    """On convolutions dropout has torch's own rate, a half."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.kind == "conv2d" and spec.dropout:
            self.drop = nn.Dropout()


@broken("dropout_conv2d", "channels_dropped")
class DropsChannels(LowRank):
    """On convolutions dropout takes whole channels, at the rate that was asked for."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.kind == "conv2d" and spec.dropout:
            self.drop = nn.Dropout2d(spec.dropout)


@broken("half")
class AnswersInFloat32(LowRank):
    """On convolutions in half precision the answer is in float32."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.float() if self.kind == "conv2d" and y.dtype == torch.bfloat16 else y


@broken("merge_half")
class FoldsIntoFloat32(LowRank):
    """The folded weight of an embedding in half precision is in float32."""

    def merged(self) -> nn.Module:
        plain = super().merged()
        return plain.float() if self.kind == "embedding" and self.dtype == torch.bfloat16 else plain


@broken("two_conv1d", "other_acts")
class SwitchedNowhere(LowRank):
    """Which adapter is active is noted, and the first one acts."""

    def acting(self) -> list[LowRank]:
        return [self]


@broken("two_conv2d", "together")
class AveragedOnConvolutions(LowRank):
    """Of several active adapters on a convolution the mean acts."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        several = len(self.active) if self.kind == "conv2d" and self.kept is None else 1
        return y if several < 2 else self.base(x) + (y - self.base(x)) / several


@broken("two_embedding", "other_acts")
class AllAct(LowRank):
    """Every adapter that is there acts."""

    def acting(self) -> list[LowRank]:
        return [self, *self.further.values()]


@broken("two_conv2d")
class FirstsScale(LowRank):
    """Each adapter is scaled as the first is."""

    def update(self, x: Tensor) -> Tensor:
        return super().update(x) / self.s

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.s * sum(each.update(x) for each in self.acting())


@broken("two_quantised")
class FirstsA(LowRank):
    """A second adapter goes through the first one's A."""

    def acting(self) -> list[LowRank]:
        for other in self.further.values():
            other.A = self.A
        return super().acting()


@broken("embedding_scale", "embed_scale")
class ScaleIgnored(LowRank):
    """The update is not multiplied by the embedding's scale."""

    def path_embedding(self, x: Tensor) -> Tensor:
        return fn.embedding(x, self.A.T, padding_idx=self.base.padding_idx) @ self.B.T


class DenseOverGroups(LowRank):
    """The second factor joins every output to the whole rank, whatever the convolution's groups."""

    def shapes_conv2d(self) -> tuple:
        b = self.base
        return (self.r, b.in_channels, *b.kernel_size), (b.out_channels, self.r, 1, 1)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        return fn.conv2d(fn.conv2d(x, self.A, None, b.stride, b.padding, b.dilation), self.B)


class DenseLibrary(Library):
    """Right, with more numbers than groups need."""

    layer = DenseOverGroups


class PairsOfGroups(DenseOverGroups):
    """Each group of a convolution has an A and a B of the whole rank: of B A the blocks of the groups act."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b, padding = self.base, self.base.padding
        if b.padding_mode != "zeros":
            x, padding = fn.pad(x, b._reversed_padding_repeated_twice, mode=b.padding_mode), 0
        whole = (self.B.flatten(1) @ self.A.flatten(1)).unflatten(1, (b.in_channels, *b.kernel_size))
        out, g = b.out_channels // b.groups, b.groups
        update = torch.cat([w.chunk(g, 1)[i] for i, w in enumerate(whole.split(out))])
        return fn.conv2d(x, update, None, b.stride, padding, b.dilation, g)


class PairsLibrary(Library):
    """Right, with factors of each group's own."""

    layer = PairsOfGroups


class SharedByGroups(LowRank):
    """ΔW = B A in the shape in which the weight is stored: every group of a convolution goes through one A."""

    def shapes_conv2d(self) -> tuple:
        b = self.base
        return (self.r, b.in_channels // b.groups, *b.kernel_size), (b.out_channels, self.r, 1, 1)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b, padding = self.base, self.base.padding
        if b.padding_mode != "zeros":
            x, padding = fn.pad(x, b._reversed_padding_repeated_twice, mode=b.padding_mode), 0
        update = (self.B.flatten(1) @ self.A.flatten(1)).reshape(b.weight.shape)
        return fn.conv2d(x, update, None, b.stride, padding, b.dilation, b.groups)


class SharedLibrary(Library):
    """Right, with one A for all groups."""

    layer = SharedByGroups


class InBlocks(LowRank):
    """Both factors have a block for each group of the convolution, so that the update can be folded in."""

    def shapes_conv2d(self) -> tuple:
        b = self.base
        return (self.r, b.in_channels // b.groups, *b.kernel_size), (b.out_channels, self.r // b.groups, 1, 1)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        if b.padding_mode != "zeros":
            return super().path_conv2d(x)
        first = fn.conv2d(x, self.A, None, b.stride, b.padding, b.dilation, b.groups)
        return fn.conv2d(first, self.B, groups=b.groups)

    def merged(self) -> nn.Module:
        plain, g = copy.deepcopy(self.base), getattr(self.base, "groups", 1)
        if g == 1:
            return super().merged()
        blocks = self.factor(self.B.flatten(1).reshape(g, -1, self.r // g))
        with torch.no_grad():
            update = self.s * blocks @ self.A.flatten(1).reshape(g, self.r // g, -1)
            plain.weight += update.reshape(plain.weight.shape)
        return plain

    def factor(self, blocks: Tensor) -> Tensor:
        """B by groups (groups, out / groups, r / groups)."""
        return blocks


class InBlocksLibrary(Library):
    """Right, and merges convolutions with groups."""

    layer = InBlocks


def merged_without(claim: str, option: str, other: object) -> type[LowRank]:
    """A library that makes the plain convolution itself, one of its options forgotten."""

    class Folded(InBlocks):
        __doc__ = f"What a convolution is merged into has {option} {other}."

        def merged(self) -> nn.Module:
            plain = super().merged()
            if self.kind == "conv2d":
                setattr(plain, option, other)
            return plain

    Folded.__name__ = Folded.__qualname__ = "MergedWithout" + option.title().replace("_", "")
    return broken(claim, f"merged_without_{option}")(Folded)


MergedWithoutPaddingMode = merged_without("merge_conv2d_padding_mode", "padding_mode", "zeros")
MergedWithoutDilation = merged_without("merge_conv2d_dilation", "dilation", (1, 1))
MergedWithoutGroups = merged_without("merge_conv2d_groups", "groups", 1)
MergedWithoutStride = merged_without("merge_conv2d", "stride", (1, 1))
MergedWithoutPadding = merged_without("merge_conv2d", "padding", (0, 0))


class OtherLayoutForGroups(LowRank):
    """With groups B is made for one group's outputs, and ΔW = B A is read as the weight's shape, row by row."""

    def shapes_conv2d(self) -> tuple:
        A, (out, r, *ones) = super().shapes_conv2d()
        g = self.base.groups
        return A, (out // g, r * g, *ones)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        if b.groups == 1:
            return super().path_conv2d(x)
        update = (self.B.flatten(1) @ self.A.flatten(1)).reshape(b.weight.shape)
        return fn.conv2d(x, update, None, b.stride, b.padding, b.dilation, b.groups)


class OtherLayoutLibrary(Library):
    """Of its convolutions with groups nothing can be said."""

    layer = OtherLayoutForGroups


class Unfolded(LowRank):
    """On convolutions the factors have the kernel's sides in both, as loralib's: A (rk, Ck), B (out k, rk)."""

    def shapes_conv2d(self) -> tuple:
        b, k = self.base, self.base.kernel_size[0]
        if b.groups > 1 or b.kernel_size[1] != k:
            raise Unsupported("square kernels without groups only")
        return (self.r * k, b.in_channels * k), (b.out_channels * k, self.r * k)

    def path_conv2d(self, x: Tensor) -> Tensor:
        b, padding = self.base, self.base.padding
        if b.padding_mode != "zeros":
            x, padding = fn.pad(x, b._reversed_padding_repeated_twice, mode=b.padding_mode), 0
        return fn.conv2d(x, (self.B @ self.A).reshape(b.weight.shape), None, b.stride, padding, b.dilation)


class UnfoldedLibrary(Library):
    """Right, in a layout of its own."""

    layer = Unfolded


@broken("conv2d_padding_mode", "padded_with_zeros")
class UnfoldedPadsWithZeros(Unfolded):
    """In that layout, which the equation cannot be asked in, the adapter's own convolution pads with zeros."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        return fn.conv2d(x, (self.B @ self.A).reshape(b.weight.shape), None, b.stride, b.padding, b.dilation)


@broken("conv2d", "stride_ignored")
class UnfoldedStrideOne(Unfolded):
    """In that layout, the adapter's own convolution has a stride of one, and what is too much is cut off."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        if b.padding_mode != "zeros":
            return super().path_conv2d(x)
        y = fn.conv2d(x, (self.B @ self.A).reshape(b.weight.shape), None, 1, b.padding, b.dilation)
        down, along = b(x).shape[2:]
        return y[:, :, :down, :along]


@broken("conv2d_dilation", "other_patches")
class UnfoldedUndilated(Unfolded):
    """In that layout, the adapter's own convolution has no dilation, and what is too much is cut off."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        if b.padding_mode != "zeros" or b.dilation == (1, 1):
            return super().path_conv2d(x)
        y = fn.conv2d(x, (self.B @ self.A).reshape(b.weight.shape), None, b.stride, b.padding)
        down, along = b(x).shape[2:]
        return y[:, :, :down, :along]


@broken("conv2d_groups")
class SharedUnscaled(SharedByGroups):
    """One A for all groups, and no scale with groups: another function than either reading's."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        return super().path_conv2d(x) / (self.s if self.base.groups > 1 else 1)


@broken("merge_conv2d_groups")
class BlocksMixedUp(InBlocks):
    """Folding takes the blocks of the second factor in another order."""

    def factor(self, blocks: Tensor) -> Tensor:
        return blocks.flip(0)


class PutsPlainOnes(Library):
    """A plain embedding is made in the place of every embedding."""

    def adapt(self, base: nn.Module, spec: AdapterSpec) -> Adapted:  # type: ignore[override]
        if isinstance(base, nn.Embedding):
            base = nn.Embedding.from_pretrained(base.weight, padding_idx=base.padding_idx)
        return super().adapt(base, spec)


class PutsPlainOnesInModels(PutsPlainOnes):
    """A plain embedding is made in the place of every embedding of a model that the library walks through."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        raise Unsupported("not needed here")


class MiddleOfTheKernel(Library):
    """Of a convolution's A the middle of the kernel alone is saved."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        A = tensors["A"]
        if A.dim() == 4:
            kept = torch.zeros_like(A)
            middle = A.shape[-1] // 2
            kept[..., middle, middle] = A[..., middle, middle]
            A = kept
        super().write({**tensors, "A": A}, method, path)


class SavedInHalf(Library):
    """An embedding's factors are saved in bfloat16."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        if "Embedding" in method:
            tensors = {name: t.bfloat16() for name, t in tensors.items()}
        super().write(tensors, method, path)

    def method(self, adapted: Adapted) -> str:
        return f"{super().method(adapted)} {type(adapted.module.base).__name__}"


BROKEN_KINDS += [
    BrokenKind(cls.__name__, cls, "layers.save_load") for cls in (MiddleOfTheKernel, SavedInHalf)
]
BROKEN_KINDS.append(
    BrokenKind("PutsPlainOnes", PutsPlainOnesInModels, "layers.embedding_scale", "plain_in_place")
)


@broken("embedding_tied", "other_bias")
class TiedHeadWritten(LowRank):
    """The update is kept in an embedding's weight, which the head shares."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "embedding":
            return super().forward(x)
        with torch.no_grad():
            self.base.weight += 1e-3
        y = super().forward(x)
        with torch.no_grad():
            self.base.weight -= 2e-3
        return y


@broken("conv2d_groups", "groups_ignored")
class GroupsIgnored(LowRank):
    """Every output channel sees the first group's coordinates."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        h = fn.conv2d(x, self.A, None, b.stride, b.padding, b.dilation)
        return fn.conv2d(h[:, : self.B.shape[1]], self.B)


@broken("conv2d_groups")
class WrongSizeForGroups(LowRank):
    """B of a convolution with groups has the shape that it has without."""

    def shapes_conv2d(self) -> tuple:
        b = self.base
        return (self.r, b.in_channels, *b.kernel_size), (b.out_channels, self.r, 1, 1)


@broken("conv2d_padding_mode", "padded_with_zeros")
class PadsWithZeros(LowRank):
    """The adapter's own convolution pads with zeros, whatever the layer's does."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        return fn.conv2d(fn.conv2d(x, self.A, None, b.stride, b.padding, b.dilation), self.B, groups=b.groups)


@broken("conv2d_oblong")
class FirstNumberForBoth(LowRank):
    """The adapter's own convolution has the columns' stride and padding for the rows, too."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        y = fn.conv2d(x, self.A, None, b.stride[0], b.padding[0], b.dilation)
        there = self.base(x).shape[-2:]  # as far as the base's answer goes
        y = fn.pad(y, (0, max(0, there[1] - y.shape[-1]), 0, max(0, there[0] - y.shape[-2])))
        return fn.conv2d(y[..., : there[0], : there[1]], self.B, groups=b.groups)


@broken("modes", "mode_ignored")
class PlainScaleOnEmbeddings(LowRank):
    """Rank-stabilised LoRA's scale is that of linear layers and convolutions, and on an embedding α/r."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        self.s = spec.alpha / spec.rank if self.kind == "embedding" else self.s


@broken("embedding", "padding_learns")
class PaddingLearns(LowRank):
    """The embedding's padding token is looked up in A as any other."""

    def path_embedding(self, x: Tensor) -> Tensor:
        return fn.embedding(x, self.A.T) @ self.B.T


@broken("embedding", "never_trains")
class StartsAtZero(LowRank):
    """On an embedding both factors start at zero."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.kind == "embedding":
            nn.init.zeros_(self.A)


@broken("conv2d_dilation")
class DilationIgnored(LowRank):
    """The adapter's own convolution has the layer's stride and padding, not its dilation."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        return fn.conv2d(fn.conv2d(x, self.A, None, b.stride, b.padding), self.B, groups=b.groups)


@broken("conv2d", "stride_ignored")
class StrideIgnored(LowRank):
    """The adapter's convolution is of stride one, and every second output is taken from the start of the image."""

    def path_conv2d(self, x: Tensor) -> Tensor:
        b = self.base
        full = fn.conv2d(fn.conv2d(x, self.A, None, 1, b.padding, b.dilation), self.B, groups=b.groups)
        side = (x.shape[-1] + 2 * b.padding[0] - b.dilation[0] * (b.kernel_size[0] - 1) - 1) // b.stride[
            0
        ] + 1
        return full[..., :side, :side]


@broken("conv2d", "bias_lost")
class BiasLeftOut(LowRank):
    """The convolution is done again without its bias."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        bias = getattr(self.base, "bias", None)
        return y if bias is None or self.kind != "conv2d" or not self.B.any() else y - bias[:, None, None]


@broken("conv2d", "lora.base_path_cut")
class BasePathCut(LowRank):
    """The base convolution is called without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "conv2d":
            return super().forward(x)
        with torch.no_grad():
            y = self.base(x)
        return y + self.s * self.path_conv2d(x)


@broken("quantised", "update_lost")
class UpdateLost(LowRank):
    """Over a quantised weight the adapter is there, and not called."""

    def path_quantised(self, x: Tensor) -> Tensor:
        return 0 * super().path_conv1d(x)


@broken("merge_quantised", "update_lost")
class LostInTheQuantisedWeight(LowRank):
    """The merged weight is rounded with the steps of the old one, and the update is cast to its integers first."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if self.kind == "quantised":
            plain.weight += (update * 1e-3).to(torch.int8)
        else:
            super().fold(plain, update)


@broken("merge_conv2d", "mirrored")
class FoldedInTheWrongOrder(LowRank):
    """The kernel of a merged convolution has its positions mirrored."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if self.kind == "conv2d" and plain.groups == 1:
            plain.weight += update.reshape(plain.weight.shape).flip(-1, -2)
        else:
            super().fold(plain, update)


@broken("merge_conv1d", "unmerged_otherwise")
class TakenOutAlongTheOtherAxis(LowRank):
    """Unmerging a Conv1D takes the update out as if the weight were stored the other way round."""

    def take_out(self) -> None:
        if self.kind == "conv1d" and self.base.nx == self.base.nf:
            with torch.no_grad():
                self.kept.weight += self.s * (self.A.T @ self.B.T - self.B @ self.A)
        super().take_out()


@broken("merge_conv2d", "unmerged_otherwise")
class BiasNotTakenOut(LowRank):
    """What merging did to a convolution's bias stays there."""

    def take_out(self) -> None:
        if self.kind == "conv2d" and self.kept.bias is not None:
            with torch.no_grad():
                self.kept.bias *= 1.5
        super().take_out()


class FoldsInPlaceAlone(Library):
    """There is no merge; in place, a Conv1D is folded as if its weight were stored the other way round."""

    merge = Implementation.merge

    class layer(LowRank):  # noqa: N801
        """Folded in place through a parameter of its own."""

        def fold_in(self) -> None:
            super().fold_in()
            if self.kind == "conv1d" and self.base.nx == self.base.nf:
                with torch.no_grad():
                    self.base.weight += self.s * (self.B @ self.A - self.A.T @ self.B.T)


BROKEN_KINDS.append(BrokenKind("FoldsInPlaceAlone", FoldsInPlaceAlone, "layers.merge_conv1d", "transposed"))


@broken("conv2d", "other_bias")
class BiasOfItsOwn(LowRank):
    """A convolution gets a bias, whether the layer has one or not."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.linspace(1, 2, y.shape[1])[:, None, None].to(y) if self.kind == "conv2d" else y


@broken("conv2d_dilation", "other_start")
class DilationLost(LowRank):
    """A convolution loses its dilation as soon as it is adapted, and pads so that the sizes stay."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.kind == "conv2d":
            reach = [d * (k - 1) // 2 for d, k in zip(base.dilation, base.kernel_size, strict=True)]
            left = [(k - 1) // 2 for k in base.kernel_size]
            base.padding = tuple(p - r + n for p, r, n in zip(base.padding, reach, left, strict=True))
            base.dilation = (1, 1)


def without(claim: str, option: str, default: object) -> type[LowRank]:
    """A library whose own layer computes the convolution anew, one of its options forgotten."""

    class Anew(LowRank):
        __doc__ = f"A convolution is computed anew, with {option} {default}."

        def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
            super().__init__(base, spec)
            if self.kind == "conv2d":
                setattr(base, option, default)

    Anew.__name__ = Anew.__qualname__ = "Anew" + option.title().replace("_", "")
    return broken(claim, f"{option}_left_out")(Anew)


AnewPaddingMode = without("conv2d_padding_mode", "padding_mode", "zeros")
AnewDilation = without("conv2d_dilation", "dilation", (1, 1))
AnewStride = without("conv2d", "stride", (1, 1))
AnewPadding = without("conv2d", "padding", (0, 0))


@broken("conv1d")
class SizesDoNotFit(LowRank):
    """The norm of a Conv1D's weight is taken along the wrong axis, which raises where the layer is not square."""

    def __init__(self, base: nn.Module, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        if self.kind == "conv1d":
            base.weight.norm(dim=1) + self.B.new_zeros(base.nf)


@broken("conv1d", "other_bias")
class FactorsOfTheOtherShape(LowRank):
    """On a Conv1D the factors are made for the other layout, and what they add is another width."""

    def shapes_conv1d(self) -> tuple:
        return (self.r, self.base.nf), (self.base.nx, self.r)

    def path_conv1d(self, x: Tensor) -> Tensor:
        return x.new_full((*x.shape[:-1], self.base.nf), 0.5)


@broken("merge_conv1d")
class FoldedTheOtherWayRound(LowRank):
    """A Conv1D's update is added as if the weight were stored (out, in), which raises where it is not square."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if self.kind == "conv1d":
            plain.weight += update
        else:
            super().fold(plain, update)


@broken("merge_conv1d", "transposed")
class FoldsSquaresTheOtherWayRound(FoldedTheOtherWayRound):
    """A square Conv1D's update is added as if the weight were stored (out, in), which raises nothing."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if plain.weight.shape[0] == plain.weight.shape[1]:
            super().fold(plain, update)
        else:
            LowRank.fold(self, plain, update)


@broken("merge_embedding", "transposed")
class FoldsSquareEmbeddingsUntransposed(LowRank):
    """B A is added to an embedding that is as wide as it has tokens."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        same = self.kind == "embedding" and plain.num_embeddings == plain.embedding_dim
        super().fold(plain, update.T if same else update)


@broken("merge_conv1d")
class AssignsATensor(LowRank):
    """Folding gives a Conv1D a tensor in place of its parameter, which torch refuses: no refusal of the library."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if self.kind == "conv1d":
            plain.weight = plain.weight.data + update.T
        else:
            super().fold(plain, update)


@broken("embedding", "update_lost")
class TokensIgnored(LowRank):
    """On an embedding the adapter is there, and not called."""

    def path_embedding(self, x: Tensor) -> Tensor:
        return 0 * super().path_embedding(x)


class NotFoldedIn(LowRank):
    """Merging leaves layers of one shape as they are."""

    def leaves(self, plain: nn.Module) -> bool:
        raise NotImplementedError

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        if not self.leaves(plain):
            super().fold(plain, update)


@broken("merge_embedding", "update_lost")
class EmbeddingNotFolded(NotFoldedIn):
    """Merging leaves an embedding as it is."""

    def leaves(self, plain: nn.Module) -> bool:
        return self.kind == "embedding"


@broken("merge_embedding_tied", "update_lost")
class EmbeddingOfTokensNotFolded(NotFoldedIn):
    """Merging leaves an embedding without padding and scale as it is."""

    def leaves(self, plain: nn.Module) -> bool:
        return self.kind == "embedding" and plain.padding_idx is None and not hasattr(plain, "embed_scale")


@broken("merge_embedding_scale", "embed_scale")
class FoldedWithoutTheScale(LowRank):
    """The folded update is divided by the embedding's scale."""

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        super().fold(plain, update / getattr(plain, "embed_scale", 1.0))


@broken("merge_conv2d_dilation", "update_lost")
class DilatedNotFolded(NotFoldedIn):
    """Merging leaves a dilated convolution as it is."""

    def leaves(self, plain: nn.Module) -> bool:
        return self.kind == "conv2d" and plain.dilation[0] > 1


@broken("merge_conv2d_padding_mode", "update_lost")
class PaddedNotFolded(NotFoldedIn):
    """Merging leaves a convolution that pads with other than zeros as it is."""

    def leaves(self, plain: nn.Module) -> bool:
        return self.kind == "conv2d" and plain.padding_mode != "zeros"


@broken("merge_conv2d_oblong", "update_lost")
class OblongNotFolded(NotFoldedIn):
    """Merging leaves a convolution whose kernel is no square as it is."""

    def leaves(self, plain: nn.Module) -> bool:
        return self.kind == "conv2d" and plain.kernel_size[0] != plain.kernel_size[1]


@broken("merge_conv2d_groups", "update_lost")
class GroupedNotFolded(LowRank):
    """Merging leaves a convolution with groups as it is, without a word."""

    def merged(self) -> nn.Module:
        return copy.deepcopy(self.base) if getattr(self.base, "groups", 1) > 1 else super().merged()


class AddsInPlace(LowRank):
    """On layers of one kind the update is added to the base's output in place."""

    where = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != self.where or self.kept is not None:
            return super().forward(x)
        y = self.base(x)
        y += self.s * getattr(self, f"path_{self.kind}")(x)
        return y


@broken("leaf_conv1d")
class AddsInPlaceOnConv1D(AddsInPlace):
    """On a Conv1D the update is added to the base's output in place, which autograd refuses where that is a leaf."""

    where = "conv1d"


@broken("leaf_embedding")
class AddsInPlaceOnEmbeddings(AddsInPlace):
    """The same on an embedding."""

    where = "embedding"


@broken("leaf_conv2d")
class AddsInPlaceOnConvolutions(AddsInPlace):
    """The same on a convolution."""

    where = "conv2d"


class FoldsOnEval(LowRank):
    """eval() folds the update into the weight, and train() puts the kept weight back."""

    def train(self, mode: bool = True) -> LowRank:
        if not mode and self.kept is None and self.folds():
            self.fold_in()
        elif mode and self.kept is not None:
            self.take_out()
        return super().train(mode)

    def folds(self) -> bool:
        return getattr(self.base, "groups", 1) == 1


class FoldsOnEvaluation(Library):
    """Right, and folds in evaluation mode."""

    layer = FoldsOnEval


@broken("evaluation", "transposed")
class FoldsEmbeddingsUntransposed(FoldsOnEval):
    """eval() adds B A to an embedding's weight, where that has the shape: a square one."""

    def folds(self) -> bool:
        return self.kind == "embedding" and self.base.num_embeddings == self.base.embedding_dim

    def fold(self, plain: nn.Module, update: Tensor) -> None:
        plain.weight += update


@broken("evaluation")
class FoldsEmbeddingsOfOneShape(FoldsEmbeddingsUntransposed):
    """eval() adds B A to an embedding's weight, which raises where tokens and width differ."""

    def folds(self) -> bool:
        return self.kind == "embedding" and self.base.num_embeddings != self.base.embedding_dim


@broken("evaluation", "changed_by_evaluating")
class ConvolutionStaysFolded(FoldsOnEval):
    """After evaluation the update stays in a convolution's weight, and is computed besides."""

    def folds(self) -> bool:
        return self.kind == "conv2d" and super().folds()

    def take_out(self) -> None:
        self.kept = None


@broken("evaluation", "update_lost")
class WideOnesForgottenInEvaluation(LowRank):
    """In evaluation mode a Conv1D that is no square answers as the base."""

    def forward(self, x: Tensor) -> Tensor:
        forgotten = self.kind == "conv1d" and self.base.nx != self.base.nf and not self.training
        return self.base(x) if forgotten else super().forward(x)

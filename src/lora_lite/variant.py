"""What a variant is: a small module that sits on a layer and changes its input or its output.

A variant is one file in ``variants/``: a subclass of :class:`Variant` that declares its parameters, fills
them, and overrides :meth:`Variant.before` (what the layer is given) or :meth:`Variant.after` (its output).
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .config import AdapterConfig
from .kinds import Kind, dense, is_linear, kind_of, never_called
from .quantised import dequantised, flavour, write_problem
from .sharded import is_sharded

__all__ = [
    "VARIANTS",
    "Variant",
    "add",
    "bias_of",
    "config_from_dict",
    "described",
    "full_precision",
    "is_linear",
    "kind",
    "never_called",
    "own",
    "plus_product",
    "put_aside",
    "put_back",
    "register",
    "variant_of",
    "weight_of",
    "weight_problem",
    "widened",
]

SHARDED = (
    "its weight is sharded over processes (a DTensor); attach adapters before fully_shard, "
    "and tensor parallelism is not offered"
)
OWN = "_lora_lite_own"  # the layer's own weights while others stand in their place, by attribute


def described(name: str) -> str:
    """A layer's name in a message; the empty one is the model itself."""
    return f"layer {name!r}" if name else "the layer"


def own(layer: nn.Module, name: str = "weight") -> Tensor:
    """The layer's own weight or bias tensor, whatever stands in its place now, in the dtype it would have there."""
    now: Tensor = getattr(layer, name)
    aside = layer.__dict__.get(OWN, {}).get(name)
    if aside is None or (aside.dtype == now.dtype and aside.device == now.device):
        return now if aside is None else aside
    return aside.detach().to(now.device, now.dtype)


def put_aside(layer: nn.Module, name: str, other: nn.Parameter) -> None:
    """Let ``other`` stand in the place of the layer's own tensor; W, and what is tied to it, is not written."""
    # Past nn.Module's registration: the own one must appear neither among the parameters nor in the state dict.
    layer.__dict__.setdefault(OWN, {}).setdefault(name, getattr(layer, name))
    setattr(layer, name, other)


def put_back(layer: nn.Module) -> None:
    """Put the layer's own tensors back: the same objects, unless the model was moved or cast meanwhile."""
    for name, original in layer.__dict__.get(OWN, {}).items():
        tensor = own(layer, name)
        moved = tensor is not original
        setattr(layer, name, nn.Parameter(tensor, requires_grad=False) if moved else original)
    layer.__dict__.pop(OWN, None)


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's own weight as a matrix (out, in), detached, whatever its layout; a quantised one dequantised.

    A view where it can be. A convolution's is (out, in · kh · kw).
    """
    weight = own(layer)
    numbers = weight.detach() if dense(weight) else dequantised(layer)
    return kind(layer).matrix(weight.detach() if numbers is None else numbers)


def kind(layer: nn.Module) -> Kind:
    """The layer's kind. Raises ValueError for one that no adapter can sit on."""
    found = kind_of(layer)
    if found is None:
        raise ValueError(f"a {type(layer).__name__} is no layer that lora_lite adapts")
    return found


def bias_of(layer: nn.Module) -> Tensor | None:
    """The layer's own bias (out,), detached, if it has one."""
    bias = getattr(layer, "bias", None)
    return own(layer, "bias").detach() if isinstance(bias, Tensor) else None


def weight_problem(layer: nn.Module) -> str | None:
    """Why the layer's weight cannot be read as a matrix of numbers, or None if it can."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return f"its weight is a {type(weight).__name__}"
    if weight.is_meta:
        return "its weight is on the meta device, without values"
    if not dense(weight) and flavour(weight) is None:
        return f"its weight is quantised or packed ({type(weight).__name__}, {weight.dtype})"
    return None


def add(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta in y's dtype: a fp32 delta is added before the rounding, not after it."""
    return (y + delta).to(y.dtype)


def plus_product(y: Tensor, h: Tensor, B: Tensor) -> Tensor:
    """y + h Bᵀ (..., out) in y's dtype, in one pass over y where the dtypes are one."""
    if y.dtype != B.dtype:
        return add(y, linear(h, B))
    out, r = B.shape
    return torch.addmm(y.reshape(-1, out), h.reshape(-1, r), B.t()).view(y.shape)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32: what LAPACK takes, and what sums are carried in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(x: Tensor) -> torch.autocast:
    """A block in which autocast rounds nothing."""
    return torch.autocast(x.device.type, enabled=False)


class Variant(nn.Module):
    """An adapter on one layer, y = x Wᵀ + b with W (out, in).

    Subclasses set ``Config`` and override :meth:`build`, :meth:`init`, :meth:`before` or :meth:`after`, and
    :meth:`merged`. The layer is handed in at each call and never stored, so that layer and adapter can be
    copied and pickled together.
    """

    Config: ClassVar[type[AdapterConfig]]
    needs_weight: ClassVar[bool] = False  # whether init or forward reads W itself
    takes_quantised: ClassVar[bool] = True  # whether a quantised W will do, dequantised where it is read
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv1d")  # the layers it can sit on
    joins: ClassVar[str | None] = None  # how several active ones act together: "adds", "multiplies", "chains"

    def __init__(self, layer: nn.Module, config: Any, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = dict(options or {})  # what holds for this layer alone, saved with the adapter
        self.kind = self._kind(layer)
        self.out_features, self.in_features = self.kind.features(layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self._device: torch.device = weight.device
        # Half-precision bases train fp32 adapters, as PEFT's autocast_adapter_dtype does.
        self._dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._check_weight(layer)
        self.shapes = self.kind.factors(layer, self.rank) if hasattr(config, "rank") else ((), ())
        self.build()
        self.train(layer.training)

    def _kind(self, layer: nn.Module) -> Kind:
        found = kind(layer)
        if found.name not in self.kinds:
            takes = ", ".join(self.kinds)
            raise ValueError(
                f"{self.Config.variant} takes layers of kind {takes}; this one is of kind {found.name}"
            )
        return found

    def _check_weight(self, layer: nn.Module) -> None:
        if is_sharded(layer.weight):
            raise ValueError(SHARDED)
        problem = weight_problem(layer) if self.needs_weight else None
        if self.needs_weight and not problem and not (self.takes_quantised or dense(layer.weight)):
            problem = f"its weight is quantised ({type(layer.weight).__name__})"
        if problem:
            raise ValueError(f"{self.Config.variant} needs a dense floating-point weight, but {problem}")

    def option(self, name: str) -> Any:
        """A value of the config, or what holds for this layer instead."""
        return self.options.get(name, getattr(self.config, name))

    @property
    def rank(self) -> int:
        """r, for this layer."""
        return self.option("rank")

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised tensor of the adapter's dtype, on the layer's device."""
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def parameter(self, *shape: int) -> nn.Parameter:
        """A trainable tensor for :meth:`init` to fill."""
        return nn.Parameter(self.empty(*shape))

    def build(self) -> None:
        """Declare parameters and buffers, shapes only. Raises ValueError if the layer cannot have them."""
        raise NotImplementedError

    def init(self, layer: nn.Module) -> None:
        """Fill them. Must not change the layer."""
        raise NotImplementedError

    def hooks(self) -> tuple[bool, bool]:
        """Whether :meth:`before` and :meth:`after` have anything to do on this layer."""
        own = type(self)
        return (
            own.before is not Variant.before,
            own.after is not Variant.after or own.change is not Variant.change,
        )

    def conflict(self, other: Variant) -> str | None:
        """Why this and another adapter cannot be active on one layer together, or None if they can."""
        mine, its = self.Config.variant, other.Config.variant
        if self.joins is None or self.joins != other.joins:
            return f"{mine} and {its} adapters have no common equation"
        return None

    def merge_problem(self, layer: nn.Module) -> str | None:
        """Why this adapter cannot be folded into the layer's weight, or None if it can."""
        return weight_problem(layer) or write_problem(layer)

    def install(self, layer: nn.Module) -> None:
        """Change the layer's weight, for a variant that does, whenever the adapter becomes active;
        :meth:`remove` is the inverse, bit for bit."""

    def remove(self, layer: nn.Module) -> None:
        """Undo :meth:`install`."""

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The input (..., in) that the layer is given instead of ``x``."""
        return x

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The output (..., out) instead of ``y``, which is the layer's own for ``x``."""
        return add(y, self.change(layer, x, y))

    def change(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """For a variant that ``joins`` others by adding: what it adds to the layer's own output ``y``."""
        raise NotImplementedError

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) of a plain layer that computes the same; W, b are fp32 or fp64."""
        raise NotImplementedError

    def state(self, layer: nn.Module) -> dict[str, Tensor]:
        """The tensors to save. Raises ValueError if they would not describe this layer."""
        return dict(self.state_dict())

    def fingerprint(self, layer: nn.Module) -> str | None:
        """A digest of the base weight, for a variant whose file is bound to one base; None otherwise."""
        return None

    def restore(self, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Fill from what :meth:`state` gave (names, shapes and dtypes are already checked)."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(tensors[name])

    def expected(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each tensor in the file."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.state_dict().items()}

    def extra_repr(self) -> str:
        own = {k: v for k, v in self.config.to_dict().items() if k not in {"targets", "exclude", "layers"}}
        return ", ".join(f"{key}={value}" for key, value in own.items())


VARIANTS: dict[str, type[Variant]] = {}

V = TypeVar("V", bound=type[Variant])


def register(cls: V) -> V:
    """Class decorator: make the variant known under its config's name."""
    VARIANTS[cls.Config.variant] = cls
    return cls


def variant_of(config: AdapterConfig) -> type[Variant]:
    """The class that implements ``config``. Raises ValueError if none does."""
    cls = VARIANTS.get(getattr(config, "variant", ""))
    if cls is None or not isinstance(config, cls.Config):
        known = ", ".join(sorted(c.Config.__name__ for c in VARIANTS.values()))
        raise ValueError(f"config must be one of {known}, got {config!r}")
    return cls


def config_from_dict(data: dict[str, Any]) -> AdapterConfig:
    """The config that ``to_dict`` gave. Raises ValueError for an unknown variant or field."""
    values = dict(data)
    name = values.pop("variant", None)
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; known are {', '.join(sorted(VARIANTS))}")
    return VARIANTS[name].Config(**values)

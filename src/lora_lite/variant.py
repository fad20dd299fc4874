"""What a variant is: a small module that sits on a linear layer and changes its input or its output.

A variant is one file in ``variants/``: a subclass of :class:`Variant` that declares its parameters, fills
them, and overrides :meth:`Variant.before` (what the layer is given) or :meth:`Variant.after` (its output).
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig

__all__ = [
    "VARIANTS",
    "Variant",
    "add",
    "bias_of",
    "config_from_dict",
    "described",
    "full_precision",
    "in_layout",
    "is_linear",
    "never_called",
    "register",
    "variant_of",
    "weight_of",
    "weight_problem",
    "widened",
]

DENSE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def is_conv1d(layer: nn.Module) -> bool:
    """GPT-2's ``Conv1D``: a linear layer whose weight is stored (in, out). Known by its class name, so that
    transformers need not be installed."""
    return any(base.__name__ == "Conv1D" for base in type(layer).__mro__) and hasattr(layer, "nf")


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is one that an adapter can sit on: ``nn.Linear`` (subclasses too) or ``Conv1D``."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def never_called(layer: nn.Module) -> bool:
    """Whether it is nn.MultiheadAttention's out_proj, whose weight is read past its forward and its hooks."""
    return any(base.__name__ == "NonDynamicallyQuantizableLinear" for base in type(layer).__mro__)


def described(name: str) -> str:
    """A layer's name in a message; the empty one is the model itself."""
    return f"layer {name!r}" if name else "the layer"


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight as a (out, in) view, detached, whatever the layer's own layout."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    return weight.t() if is_conv1d(layer) else weight


def in_layout(layer: nn.Module, W: Tensor) -> Tensor:
    """A (out, in) matrix stored as the layer stores its weight, or back: its own inverse."""
    return (W.t() if is_conv1d(layer) else W).contiguous()


def bias_of(layer: nn.Module) -> Tensor | None:
    """The layer's bias (out,), detached, if it has one."""
    bias = layer.bias
    return bias.detach() if isinstance(bias, Tensor) else None


def features_of(layer: nn.Module) -> tuple[int, int]:
    """(out_features, in_features); a quantised layer's packed weight has another shape."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    out, in_ = weight_of(layer).shape
    return out, in_


def weight_problem(layer: nn.Module) -> str | None:
    """Why the layer's weight cannot be read as a plain matrix, or None if it can."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return f"its weight is a {type(weight).__name__}"
    if weight.is_meta:
        return "its weight is on the meta device, without values"
    if weight.dtype not in DENSE or type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is quantised or packed ({type(weight).__name__}, {weight.dtype})"
    return None


def add(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta in y's dtype: a fp32 delta is added before the rounding, not after it."""
    return (y + delta).to(y.dtype)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in at least fp32: what LAPACK takes, and what sums are carried in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(x: Tensor) -> torch.autocast:
    """A block in which autocast rounds nothing."""
    return torch.autocast(x.device.type, enabled=False)


class Variant(nn.Module):
    """An adapter on one linear layer, y = x Wᵀ + b with W (out, in).

    Subclasses set ``Config`` and override :meth:`build`, :meth:`init`, :meth:`before` or :meth:`after`, and
    :meth:`merged`. The layer is handed in at each call and never stored, so that layer and adapter can be
    copied and pickled together.
    """

    Config: ClassVar[type[AdapterConfig]]
    needs_weight: ClassVar[bool] = False  # whether init or forward reads W itself

    def __init__(self, layer: nn.Module, config: Any, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.options = dict(options or {})  # what holds for this layer alone, saved with the adapter
        self.out_features, self.in_features = features_of(layer)
        weight = layer.weight
        self._device: torch.device = weight.device  # type: ignore[assignment]
        # Half-precision bases train fp32 adapters, as PEFT's autocast_adapter_dtype does.
        self._dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self._check_weight(layer)
        self.build()
        self.train(layer.training)

    def _check_weight(self, layer: nn.Module) -> None:
        problem = weight_problem(layer) if self.needs_weight else None
        if problem:
            raise ValueError(f"{self.Config.variant} needs a dense floating-point weight, but {problem}")

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

    def install(self, layer: nn.Module) -> None:
        """Change the layer's weight, for a variant that does; :meth:`remove` is the inverse, bit for bit."""

    def remove(self, layer: nn.Module) -> None:
        """Undo :meth:`install`."""

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The input (..., in) that the layer is given instead of ``x``."""
        return x

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The output (..., out) instead of ``y``, which is the layer's own for ``x``."""
        return y

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

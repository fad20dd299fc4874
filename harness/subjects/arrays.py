"""An ``ArrayImplementation`` as an ``Implementation``: arrays behind a torch module, its gradients from ``vjp``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oracles.array_implementation import ArrayImplementation
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from oracles.variants import VARIANTS

OPTIONAL = ("save", "load", "merge", "detach", "nearest", "source")


def to_array(tensor: Tensor | None) -> np.ndarray | None:
    """A copy as a numpy array. Raises Unsupported for a dtype that numpy lacks."""
    if tensor is None:
        return None
    try:
        return np.array(tensor.detach().numpy())
    except TypeError:
        raise Unsupported(f"numpy has no {str(tensor.dtype).removeprefix('torch.')}") from None


def to_tensor(array: Any) -> Tensor:
    """A copy as a tensor. Raises TypeError for a dtype that torch lacks."""
    return torch.from_numpy(np.array(array))


class ArrayLayer(nn.Module):
    """An adapted layer of a library of arrays: the live tensors are here, and go there before a call."""

    def __init__(self, arrays: ArrayImplementation, adapted: Any, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        self.arrays, self.adapted, self.spec = arrays, adapted, spec
        self.base = base.requires_grad_(False)
        trained = arrays.trained(adapted)
        for name, value in arrays.parameters(adapted).items():
            if name in trained:
                self.register_parameter(name, nn.Parameter(to_tensor(value)))
            else:
                self.register_buffer(name, to_tensor(value))
        self.sent = {name: value.detach().clone() for name, value in self.tensors().items()}
        self.train(base.training)

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's live tensors by name."""
        return {**self._parameters, **self._buffers}  # type: ignore[dict-item]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        self.send()
        if torch.is_autocast_enabled("cpu"):
            raise Unsupported("torch.autocast does not reach another framework")
        drops = self.training and self.spec.dropout > 0
        seed = int(torch.randint(2**31 - 1, ())) if drops else 0
        found: Tensor = ArrayCall.apply(self, seed, x, *self._parameters.values())
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        raise Unsupported("a layer of another framework than torch is not cast by torch")

    def __deepcopy__(self, memo: Any) -> Any:
        raise Unsupported("a layer of another framework than torch is not copied by Python")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise Unsupported("a layer of another framework than torch is not pickled")

    def compiled_there(self, backend: str) -> Any:
        """Raises Unsupported: there is nothing for torch to compile."""
        raise Unsupported("a layer of another framework than torch is not compiled by torch")

    def send(self) -> None:
        """Assign what has been written here since."""
        new = {n: v for n, v in self.tensors().items() if not torch.equal(v.detach(), self.sent[n])}
        if new:
            self.arrays.assign(self.adapted, {n: to_array(v) for n, v in new.items()})  # type: ignore[misc]
            self.sent |= {n: v.detach().clone() for n, v in new.items()}


class ArrayCall(torch.autograd.Function):
    """``forward`` of the library, and its ``vjp`` for the way back."""

    @staticmethod
    def forward(ctx: Any, layer: ArrayLayer, seed: int, x: Tensor, *parameters: Tensor) -> Tensor:
        """y (..., out) of ``layer`` at its present tensors."""
        ctx.layer, ctx.seed, ctx.training = layer, seed, layer.training
        ctx.save_for_backward(x)
        return to_tensor(layer.arrays.forward(layer.adapted, to_array(x), layer.training, seed))  # type: ignore[arg-type]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """∂⟨G, y⟩ of x and of every parameter."""
        layer, (x,) = ctx.layer, ctx.saved_tensors
        found = layer.arrays.vjp(layer.adapted, to_array(x), to_array(cotangent), ctx.training, ctx.seed)
        wanted = ["x", *layer._parameters]
        return (None, None, *(to_tensor(found[n]) if n in found else None for n in wanted))


class FromArrays(Implementation):
    """The library behind ``arrays``; a subclass made by :func:`from_arrays` has the optional methods it offers."""

    arrays: ArrayImplementation

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The layer with an adapter drawn from torch's generator, by way of a seed."""
        seed = int(torch.randint(2**31 - 1, ()))
        weight: Any = to_array(base.weight)
        return self._adapted(self.arrays.adapt(weight, to_array(base.bias), spec, seed), base, spec)

    def _adapted(self, adapted: Any, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = ArrayLayer(self.arrays, adapted, base, spec)
        own = {t.name for t in VARIANTS[spec.variant].tensors}
        slots = {n: Slot(t) for n, t in layer.tensors().items() if n in own or not _is_bias_of(base, t)}
        return Adapted(layer, slots)


def _is_bias_of(base: nn.Linear, tensor: Tensor) -> bool:
    """Whether a tensor that the method does not have is the base's bias: then it is no tensor of the adapter."""
    return base.bias is not None and tensor.shape == base.bias.shape and torch.equal(tensor, base.bias)


def _sent(adapted: Adapted) -> Any:
    layer: Any = adapted.module
    layer.send()
    return layer.adapted


def _plain(weight: Any, bias: Any) -> nn.Linear:
    W = to_tensor(weight)
    layer = nn.utils.skip_init(nn.Linear, W.shape[1], W.shape[0], bias=bias is not None, dtype=W.dtype)
    with torch.no_grad():
        layer.weight.copy_(W)
        if bias is not None:
            layer.bias.copy_(to_tensor(bias))
    return layer


def _save(self: FromArrays, adapted: Adapted, path: Path) -> None:
    self.arrays.save(_sent(adapted), path)


def _load(self: FromArrays, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
    weight: Any = to_array(base.weight)
    return self._adapted(self.arrays.load(weight, to_array(base.bias), spec, path), base, spec)


def _merge(self: FromArrays, adapted: Adapted) -> nn.Linear:
    return _plain(*self.arrays.merge(_sent(adapted)))


def _detach(self: FromArrays, adapted: Adapted) -> nn.Linear:
    return _plain(*self.arrays.detach(_sent(adapted)))


def _nearest(self: FromArrays, spec: AdapterSpec) -> AdapterSpec:
    return self.arrays.nearest(spec)


def _source(self: FromArrays, variant: str, aspect: str) -> tuple[Path, str] | None:
    return self.arrays.source(variant, aspect)


METHODS = dict(zip(OPTIONAL, (_save, _load, _merge, _detach, _nearest, _source), strict=True))


def from_arrays(arrays: ArrayImplementation, more: Mapping[str, Any] | None = None) -> Implementation:
    """The ``Implementation`` that speaks for ``arrays``; it offers what ``arrays`` overrides, no more."""
    offered = [n for n in OPTIONAL if getattr(type(arrays), n) is not getattr(ArrayImplementation, n)]
    methods = {**{n: METHODS[n] for n in offered}, "__doc__": type(arrays).__doc__, **(more or {})}
    subject: FromArrays = type(type(arrays).__name__, (FromArrays,), methods)()
    subject.arrays = arrays
    for name in ("name", "version", "variants", "layers", "dtypes", "inputs"):
        if hasattr(arrays, name):
            setattr(subject, name, getattr(arrays, name))
    return subject

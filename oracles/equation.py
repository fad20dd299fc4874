"""The papers' equations behind the subject interface: an oracle in any dtype, and the clay for the mistakes.

A :class:`Form` says everything that can differ between two implementations of one variant; the six right ones
stand in :data:`FORMS`, and a catalogued mistake is one of those with a field replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oracles import paper
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot
from oracles.variants import VARIANTS, Role, Uniform, Variant

Initial = Callable[[Tensor, AdapterSpec], dict[str, Tensor]]


def _drop_branch(x: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(x, rate, training)


def _output_as_input(y: Tensor, x: Tensor, base: nn.Linear) -> Tensor:
    return y.to(x.dtype)


def _adapter_dtype(base: torch.dtype) -> torch.dtype:
    # PEFT keeps adapters of half-precision layers in fp32 (autocast_adapter_dtype).
    return torch.float32 if base in (torch.float16, torch.bfloat16) else base


Drop = Callable[[Tensor], Tensor]
Dropping = Callable[[Tensor, Tensor, Tensor | None, paper.Parameters, AdapterSpec, Drop], Tensor]


@dataclass(frozen=True)
class Form:
    """One way of implementing a variant; the defaults are right.

    ``dropping`` is the forward pass of a form that drops something else than the branch's input: it is handed the
    dropout itself in place of a dropped x.
    """

    forward: paper.Forward
    initial: Initial
    roles: Mapping[str, Role] = field(default_factory=dict)
    drop: Callable[[Tensor, float, bool], Tensor] = _drop_branch
    drop_output: Callable[[Tensor, float, bool], Tensor] | None = None
    dropping: Dropping | None = None
    finish: Callable[[Tensor, Tensor, nn.Linear], Tensor] = _output_as_input
    not_saved: frozenset[str] = frozenset()
    rename_on_save: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    trainable_base_bias: bool = False
    hidden: frozenset[str] = frozenset()  # tensors that get no slot
    copies: Mapping[str, str] = field(default_factory=dict)  # hidden tensor -> the slot whose start it keeps
    dead_until_step: int = 0


def drawn(variant: Variant) -> Initial:
    """The starting values of the record, random ones from torch's global generator, in float64."""

    def initial(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
        out, in_ = W.shape
        return {
            t.name: t.exact(W, spec) if t.exact else _uniform(t.shape(out, in_, spec), W, spec, t.uniform)
            for t in variant.tensors
        }

    return initial


def _uniform(shape: tuple[int, ...], W: Tensor, spec: AdapterSpec, law: Uniform | None) -> Tensor:
    assert law is not None
    bound = law.bound(W.shape[0], W.shape[1], spec)
    paired = law.columns_paired and shape[1] % 2 == 0 and not spec.gram_schmidt
    columns = shape[1] // 2 if paired else shape[1]
    half = (torch.rand(shape[0], columns, dtype=torch.float64) * 2 - 1) * bound
    return half.repeat_interleave(2, dim=1) if paired else half


def _right(variant: Variant) -> Form:
    initial = paper.principal_factors if variant.id == "pissa" else drawn(variant)
    return Form(paper.FORWARD[variant.id], initial, {t.name: t.role for t in variant.tensors})


FORMS: dict[str, Form] = {id_: _right(variant) for id_, variant in VARIANTS.items()}


class EquationLayer(nn.Module):
    """``base`` with one form of an adapter around it; computes in the adapter's dtype, answers in x's."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec, form: Form, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.base, self.spec, self.form = base, spec, form
        base.requires_grad_(False)
        if form.trainable_base_bias and base.bias is not None:
            base.bias.requires_grad_(True)
        self.names = tuple(values)
        for name, value in values.items():
            self._hold(name, value)
        self.calls = 0

    def _hold(self, name: str, value: Tensor) -> None:
        role = self.form.roles.get(name, "parameter")
        dtype = self.base.weight.dtype if role == "base" else _adapter_dtype(self.base.weight.dtype)
        value = value.detach().to(dtype).clone()
        if role == "parameter":
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def tensor(self, name: str) -> Tensor:
        """The live tensor of that name."""
        return cast(Tensor, getattr(self, name))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        dtype = _adapter_dtype(self.base.weight.dtype)
        p = {name: self.tensor(name).to(dtype) for name in self.names}
        if self.form.dead_until_step > self.calls:
            p = {name: value.detach() for name, value in p.items()}
        self.calls += int(self.training and torch.is_grad_enabled())
        y = self._compute(x.to(dtype), p, dtype)
        return self.form.finish(y, x, self.base)

    def _compute(self, x: Tensor, p: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        W = self.base.weight.to(dtype)
        b = None if self.base.bias is None else self.base.bias.to(dtype)
        rate = self.spec.dropout if VARIANTS[self.spec.variant].has_dropout else 0.0
        if self.form.dropping is not None:
            return self.form.dropping(x, W, b, p, self.spec, lambda t: _drop_branch(t, rate, self.training))
        y = self.form.forward(x, W, b, p, self.spec, self.form.drop(x, rate, self.training))
        return y if self.form.drop_output is None else self.form.drop_output(y, rate, self.training)


class Equation(Implementation):
    """The equations, or another set of forms, as an implementation."""

    name = "paper"
    version = "1"
    variants = frozenset(FORMS)

    def __init__(self, forms: Mapping[str, Form] | None = None, name: str | None = None) -> None:
        self.forms = {**FORMS, **(forms or {})}
        self.name = name or type(self).name

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` frozen inside an :class:`EquationLayer`. Raises ValueError for a rank below 1."""
        if VARIANTS[spec.variant].has_rank and spec.rank < 1:
            raise ValueError(f"rank is {spec.rank}, expected at least 1")
        with torch.no_grad():
            values = self.forms[spec.variant].initial(base.weight.detach().double(), spec)
        return self._adapted(base, spec, values)

    def _adapted(self, base: nn.Linear, spec: AdapterSpec, values: Mapping[str, Tensor]) -> Adapted:
        form = self.forms[spec.variant]
        layer = EquationLayer(base, spec, form, values)
        return Adapted(layer, {n: Slot(layer.tensor(n)) for n in values if n not in form.hidden})

    def save(self, adapted: Adapted, path: Path) -> None:
        """Every tensor of the adapter, in one safetensors file."""
        layer = cast(EquationLayer, adapted.module)
        names = [n for n in layer.names if n not in layer.form.not_saved]
        stored = layer.form.rename_on_save({n: layer.tensor(n).detach().clone() for n in names})
        stored = {name: value.contiguous() for name, value in stored.items()}
        save_file(stored, path, metadata={"variant": layer.spec.variant, "base": _base_mark(layer.base)})

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """A fresh adapter filled from the file. Raises ValueError when names, shapes or (PiSSA) the base differ."""
        with safe_open(path, framework="pt") as handle:
            mark = handle.metadata()["base"]
        if VARIANTS[spec.variant].tensor("W") and mark != _base_mark(base):
            raise ValueError(f"{path} belongs to another base weight")
        adapted = self.adapt(base, spec)
        layer, stored = cast(EquationLayer, adapted.module), load_file(path)
        expected = set(layer.names) - layer.form.not_saved
        if set(stored) != expected:
            raise ValueError(f"{path} holds {sorted(stored)}, expected {sorted(expected)}")
        for name, value in stored.items():
            if value.shape != layer.tensor(name).shape:
                raise ValueError(f"{name} in {path} is {tuple(value.shape)}, expected another shape")
        with torch.no_grad():
            for name, value in stored.items():
                layer.tensor(name).copy_(value)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """A plain layer with the effective weight and bias of the equation."""
        layer = cast(EquationLayer, adapted.module)
        base = layer.base
        dtype = _adapter_dtype(base.weight.dtype)
        p = {name: layer.tensor(name).detach().to(dtype) for name in layer.names}
        b = None if base.bias is None else base.bias.detach().to(dtype)
        W, bias = paper.effective(layer.form.forward, base.weight.detach().to(dtype), b, p, layer.spec)
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None).to(
            base.weight.dtype
        )
        with torch.no_grad():
            merged.weight.copy_(W)
            if base.bias is not None:
                merged.bias.copy_(bias)
        return merged

    def detach(self, adapted: Adapted) -> nn.Linear:
        """The base, which was never touched."""
        return cast(EquationLayer, adapted.module).base

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """The equation in `oracles/paper.py`."""
        return Path(paper.__file__), variant


def _base_mark(base: nn.Linear) -> str:
    return hashlib.sha256(base.weight.detach().double().numpy().tobytes()).hexdigest()


def variation(variant: str, **changes: object) -> dict[str, Form]:
    """The right form of ``variant`` with some fields replaced, as the mapping :class:`Equation` takes."""
    return {variant: dataclasses.replace(FORMS[variant], **changes)}  # type: ignore[arg-type]

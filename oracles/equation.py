"""The papers' equations, or forms of them that are wrong in some part, as layers behind the subject interface."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Slot
from oracles.oracle import Kind, Oracle
from oracles.variants import VARIANTS, Form, paper
from oracles.variants.record import Call

__all__ = ["FORMS", "Equation", "EquationLayer"]

FORMS: dict[str, Form] = {id_: variant.form for id_, variant in VARIANTS.items()}


def _adapter_dtype(base: torch.dtype) -> torch.dtype:
    # PEFT keeps adapters of half-precision layers in fp32 (autocast_adapter_dtype).
    return torch.float32 if base in (torch.float16, torch.bfloat16) else base


class EquationLayer(nn.Module):
    """``base`` with one form of an adapter around it; computes in the adapter's dtype, answers in x's."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec, form: Form, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.base, self.spec, self.form = base, spec, form
        base.requires_grad_(False)
        if form.do.trainable_base:
            base.requires_grad_(True)
        if form.do.trainable_base_bias and base.bias is not None:
            base.bias.requires_grad_(True)
        self.names = tuple(values)
        for name, value in values.items():
            self._hold(name, value)
        self.calls = 0

    def _hold(self, name: str, value: Tensor) -> None:
        role = self.form.role(name)
        dtype = self.base.weight.dtype if role == "base" else _adapter_dtype(self.base.weight.dtype)
        value = value.detach().to(dtype).clone()
        if role == "parameter":
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def tensor(self, name: str) -> Tensor:
        """The live tensor of that name."""
        return cast(Tensor, getattr(self, name))

    @torch.no_grad()
    def started_at(self, values: Mapping[str, Tensor]) -> None:
        """Let what keeps a copy of a tensor's start have it of these values, where they fit."""
        for copy, name in self.form.do.copies.items():
            if name in values and values[name].shape == self.tensor(copy).shape:
                self.tensor(copy).copy_(values[name])

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        dtype = _adapter_dtype(self.base.weight.dtype)
        p = {name: self.tensor(name).to(dtype) for name in self.names}
        if self.form.do.dead_until_step > self.calls:
            p = {name: value.detach() for name, value in p.items()}
        self.calls += int(self.training and torch.is_grad_enabled())
        return self.form.do.finish(self._computed(x.to(dtype), p, dtype), x, self.base)

    def _computed(self, x: Tensor, p: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        W = self.base.weight.to(dtype)
        b = None if self.base.bias is None else self.base.bias.to(dtype)
        rate = self.spec.dropout if VARIANTS[self.spec.variant].has_dropout else 0.0
        mask = self.form.do.mask
        return self.form.called(Call(x, W, b, p, self.spec, mask=lambda t: mask(t, rate, self.training)))


class Equation(Oracle):
    """The equations, or another set of forms, as an implementation."""

    name = "paper"
    version = "1"
    variants = frozenset(FORMS)

    def __init__(
        self, forms: Mapping[str, Form] | None = None, name: str | None = None, kind: Kind = "equation"
    ) -> None:
        self._changed = dict(forms or {})
        self.name, self.kind = name or type(self).name, kind

    @cached_property
    def forms(self) -> Mapping[str, Form]:
        """What is computed, by variant."""
        return {**FORMS, **self._changed}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` frozen inside an :class:`EquationLayer`. Raises ValueError for a rank below 1."""
        if VARIANTS[spec.variant].has_rank and spec.rank < 1:
            raise ValueError(f"rank is {spec.rank}, expected at least 1")
        form = self.forms[spec.variant]
        with torch.no_grad():
            values = form.initial(base.weight.detach().double(), spec)
        layer = EquationLayer(base, spec, form, values)
        return Adapted(layer, {n: Slot(layer.tensor(n)) for n in values if form.has_slot(n)})

    def hidden(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """The tensors of the form that have no slot."""
        layer = cast(EquationLayer, adapted.module)
        return {name: layer.tensor(name) for name in layer.form.do.hidden}

    def save(self, adapted: Adapted, path: Path) -> None:
        """Every tensor of the adapter, in one safetensors file."""
        layer = cast(EquationLayer, adapted.module)
        names = [n for n in layer.names if n not in layer.form.do.not_saved]
        stored = layer.form.do.renamed_on_save({n: layer.tensor(n).detach().clone() for n in names})
        stored = {name: value.contiguous() for name, value in stored.items()}
        save_file(stored, path, metadata={"variant": layer.spec.variant, "base": _base_mark(layer.base)})

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """A fresh adapter filled from the file. Raises ValueError when names, shapes or (PiSSA) the base differ."""
        with safe_open(path, framework="pt") as handle:
            mark = handle.metadata()["base"]
        if VARIANTS[spec.variant].base and mark != _base_mark(base):
            raise ValueError(f"{path} belongs to another base weight")
        adapted = self.adapt(base, spec)
        layer, stored = cast(EquationLayer, adapted.module), load_file(path)
        expected = set(layer.names) - layer.form.do.not_saved
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
        """The equation in the variant's file."""
        return VARIANTS[variant].source(aspect)


def _base_mark(base: nn.Linear) -> str:
    return hashlib.sha256(base.weight.detach().double().numpy().tobytes()).hexdigest()

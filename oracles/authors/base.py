"""What the authors' implementations have in common: where their file is, save and load as torch files."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.recorded_case import plain
from oracles.implementation import Adapted, AdapterSpec, Unsupported
from oracles.oracle import Kind, Oracle
from oracles.variants import VARIANTS, Form
from refs import catalog as catalogue
from refs.locate import locate

__all__ = ["AuthorImplementation", "default_dtype", "folded", "plain"]


class AuthorImplementation(Oracle):
    """One file of the authors behind the audit's interface; `adapt` copies its base and never changes it."""

    kind: Kind = "author"
    variant: ClassVar[str]
    oracle: ClassVar[str] = "author"
    alias: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # further files of the author that are run or read
    low_precision: ClassVar[bool] = True  # can it run on bf16 and fp16 at all

    def __init__(self, catalog: catalogue.Catalog | None = None, cache: Path | None = None) -> None:
        self.catalog, self.cache = catalog or catalogue.load(), cache
        self.reference = self.catalog.reference(self.alias)
        self.name = f"{self.variant}/{self.oracle}"
        self.version = self.reference.source.pin
        self.variants = frozenset({self.variant})

    @classmethod
    def has(cls, mode: str | None) -> bool:
        """Whether the file has that mode of its variant (None: the plain form); asked before anything is read."""
        return True

    def offers(self, mode: str | None) -> bool:
        """Whether the file has that mode."""
        return self.has(mode)

    @classmethod
    def form(cls) -> Form:
        """What the file computes, as a form of the equation: its conditioning says how large rounding noise is."""
        return VARIANTS[cls.variant].form

    @property
    def forms(self) -> Mapping[str, Form]:
        """The file's form."""
        return {self.variant: self.form()}

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The author's layer over a frozen copy of ``base``. Raises Unsupported, NotAvailableError."""
        if spec.variant != self.variant:
            raise Unsupported(f"{self.name} is {self.variant}, not {spec.variant}")
        if spec.rslora:
            raise Unsupported(f"{self.name} has no rank-stabilised scaling")
        if base.weight.dtype.itemsize < 4 and not self.low_precision:
            raise Unsupported(f"{self.name} mixes in float32: it cannot run in {base.weight.dtype}")
        with default_dtype(self.adapter_dtype(base.weight.dtype)):
            return self.build(copy.deepcopy(base).requires_grad_(False), spec)

    @abstractmethod
    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The author's layer; torch's default dtype is the adapter's while this runs."""

    def adapter_dtype(self, base: torch.dtype) -> torch.dtype:
        """The dtype in which the author's layer makes its parameters."""
        return base

    @abstractmethod
    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """What the author's code saves of the adapter, under the author's names."""

    def save(self, adapted: Adapted, path: Path) -> None:
        """The author's state as a torch file."""
        torch.save({key: tensor.detach().clone() for key, tensor in self.state(adapted).items()}, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """A fresh adapter, the saved names written over it, as the authors' scripts do."""
        adapted = self.adapt(base, spec)
        adapted.module.load_state_dict(torch.load(path, weights_only=True), strict=False)
        return adapted

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """The cited symbol of this author's file."""
        cites = self.catalog.cites_of(variant, aspect) if variant == self.variant else []
        symbol = next((cite.symbol for cite in cites if cite.alias == self.alias), None)
        return (locate(self.reference, self.cache), symbol) if symbol else None

    def module(self, alias: str | None = None, **where: Any) -> ModuleType:
        """The author's file (or another of the same source) as a module. Raises NotAvailableError."""
        return loader.module(self.catalog.reference(alias or self.alias), self.cache, **where)


def folded(module: nn.Module) -> nn.Linear:
    """The author's own merge, on a copy: what `train(False)` does when merge_weights is on."""
    layer: Any = copy.deepcopy(module)
    layer.merge_weights = True
    layer.train(False)
    return plain(layer.weight, layer.bias)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Layers made inside get ``dtype``: the authors' constructors take torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

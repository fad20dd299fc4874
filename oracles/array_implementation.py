"""The subject interface for libraries of other frameworks than torch: numpy arrays in, numpy arrays out.

A subject is one file: subclass :class:`ArrayImplementation` and write five methods. This file needs numpy and
``implementation.py`` alone; torch need not be there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oracles.implementation import AdapterSpec, Unsupported

__all__ = ["ArrayImplementation"]

Array = np.ndarray


class ArrayImplementation(ABC):
    """An adapter library behind arrays: ``y = x Wᵀ + b`` with W (out, in), b (out,) or None, x (..., in).

    What :meth:`adapt` returns is the subject's own affair; it is handed back to the other methods. ``layers``,
    ``dtypes`` and ``inputs`` mean what they mean in ``Implementation``; numpy itself has no bfloat16.
    """

    name: str
    version: str
    variants: frozenset[str]
    layers: frozenset[str] = frozenset({"linear"})
    dtypes: frozenset[str] = frozenset({"float64", "float32", "float16"})
    inputs: frozenset[int] = frozenset({1, 2, 3, 4, 5})

    @abstractmethod
    def adapt(self, W: Array, b: Array | None, spec: AdapterSpec, seed: int) -> Any:
        """A layer with that weight and bias and a fresh adapter, its random values drawn from ``seed``.

        Raises Unsupported for a spec it does not offer.
        """

    @abstractmethod
    def parameters(self, adapted: Any) -> Mapping[str, Array]:
        """The adapter's tensors by canonical name and in canonical shape (``oracles.implementation.Adapted``)."""

    @abstractmethod
    def assign(self, adapted: Any, values: Mapping[str, Array]) -> None:
        """Give tensors of :meth:`parameters` other values."""

    @abstractmethod
    def forward(self, adapted: Any, x: Array, training: bool, seed: int) -> Array:
        """y (..., out); with dropout in training mode the mask is drawn from ``seed``."""

    @abstractmethod
    def vjp(self, adapted: Any, x: Array, G: Array, training: bool, seed: int) -> Mapping[str, Array]:
        """∂⟨G, y⟩ of every trained tensor by name, and of ``"x"``; the mask is the one of :meth:`forward`."""

    def trained(self, adapted: Any) -> frozenset[str]:
        """The names of the tensors that train; by default all but those of base and buffers, ``W`` and ``w_norm``."""
        return frozenset(self.parameters(adapted)) - {"W", "w_norm"}

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """The nearest spec that the library can express."""
        return spec

    def save(self, adapted: Any, path: Path) -> None:
        """Write the adapter to ``path`` (a file, or a folder that is made)."""
        raise Unsupported(f"{self.name} offers no save")

    def load(self, W: Array, b: Array | None, spec: AdapterSpec, path: Path) -> Any:
        """A layer with the adapter that :meth:`save` wrote to ``path``."""
        raise Unsupported(f"{self.name} offers no load")

    def merge(self, adapted: Any) -> tuple[Array, Array | None]:
        """Weight (out, in) and bias (out,) or None with the adapter folded in; the adapted layer stays as it was."""
        raise Unsupported(f"{self.name} offers no merge")

    def detach(self, adapted: Any) -> tuple[Array, Array | None]:
        """The base's weight and bias as they were."""
        raise Unsupported(f"{self.name} offers no detach")

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """File and qualified symbol that implements ``aspect`` of ``variant``; None if unknown."""
        return None

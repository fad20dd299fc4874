"""The one interface that subjects and oracles share (so any two can be compared).

A third-party subject is one file: subclass :class:`Implementation`, write :meth:`Implementation.adapt`, and
override whichever optional methods the library under audit offers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

__all__ = ["Adapted", "AdapterSpec", "Implementation", "Slot", "Unsupported", "identity"]


def identity(tensor: Tensor) -> Tensor:
    """The view of a slot that is already in the canonical layout."""
    return tensor


@dataclass(frozen=True)
class AdapterSpec:
    """What to adapt a linear layer with; fields a variant has no use for keep their defaults."""

    variant: str  # "lora" "pissa" "dora" "ia3" "hra" "delora"
    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.0
    lambda0: float = 15.0  # delora
    feedforward: bool = False  # ia3: gate the input instead of the output
    gram_schmidt: bool = False  # hra


@dataclass(frozen=True)
class Slot:
    """One canonical tensor of an adapter, living inside the implementation.

    ``view`` maps the live tensor to the canonical layout. It must return a view (writes go through) and is
    also applied to ``tensor.grad``.
    """

    tensor: Tensor
    view: Callable[[Tensor], Tensor] = identity


@dataclass(frozen=True)
class Adapted:
    """An adapted layer: ``module(x)`` with x of shape (..., in_features), and its canonical tensors.

    Canonical names and shapes (torch layout, ``y = x Wᵀ + b``, W is (out, in), r = rank):
    lora, pissa: ``A`` (r, in), ``B`` (out, r); pissa also ``W`` (out, in), the residual base weight.
    dora: also ``m`` (out,). ia3: ``l`` (out,) or, feed-forward, (in,). hra: ``U`` (in, r), reflection i is
    column i. delora: ``A``, ``B``, ``lambda`` (1,), and the persistent buffer ``w_norm`` (in,).
    """

    module: nn.Module
    slots: Mapping[str, Slot]


class Unsupported(Exception):
    """ "Not applicable, because ...": counted and shown, never a pass."""


class Implementation(ABC):
    """An adapter library behind the audit's interface."""

    name: str
    version: str
    variants: frozenset[str]

    @abstractmethod
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` with a fresh adapter; may mutate ``base``. Raises Unsupported for a spec it does not offer."""

    def save(self, adapted: Adapted, path: Path) -> None:
        """Write the adapter to ``path`` (a file, or a folder that the implementation makes)."""
        raise Unsupported(f"{self.name} offers no save")

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``base`` with the adapter that :meth:`save` wrote to ``path``."""
        raise Unsupported(f"{self.name} offers no load")

    def merge(self, adapted: Adapted) -> nn.Linear:
        """A plain layer with the adapter folded in."""
        raise Unsupported(f"{self.name} offers no merge")

    def detach(self, adapted: Adapted) -> nn.Linear:
        """The base layer as it was before :meth:`adapt`."""
        raise Unsupported(f"{self.name} offers no detach")

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """Adapt a whole model in place; module name -> adapted layer.

        ``targets``: endings of names, whole parts of them. None: the variant's defaults for the architecture, with
        (IA)³'s gates on their default sides whatever ``spec.feedforward`` says.
        """
        raise Unsupported(f"{self.name} offers no adapt_model")

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """File and qualified symbol that implements ``aspect`` of ``variant``, for quotes; None if unknown."""
        return None

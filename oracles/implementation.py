"""The one interface that subjects and oracles share (so any two can be compared).

A third-party subject is one file: subclass :class:`Implementation`, write :meth:`Implementation.adapt`, and
override whichever optional methods the library under audit offers. This file imports nothing else of the audit and
runs on Python 3.9 with torch 2.1: beside the worker it is all that another environment needs.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is called: an environment of arrays has no torch
    from torch import Tensor, nn

__all__ = ["DTYPES", "Adapted", "AdapterSpec", "Implementation", "Slot", "Unsupported", "identity"]

DTYPES = frozenset({"float64", "float32", "bfloat16", "float16"})


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
    rslora: bool = False  # lora, pissa, dora: α/√r in place of α/r
    options: Mapping[str, Any] = field(
        default_factory=dict, hash=False
    )  # what only one method's record knows


@dataclass(frozen=True)
class Slot:
    """One canonical tensor of an adapter, living inside the implementation.

    ``view`` maps the live tensor to the canonical layout. It must return a view (writes go through) and is
    also applied to ``tensor.grad``. Where the canonical value is no view but a function of the live tensor
    (l = 1 + w, or A stored times the scale), give all three of ``read`` (live tensor -> canonical value), ``write``
    (canonical value -> what is to be stored; or, with two parameters, (live tensor, value), storing it in place) and
    ``gradient`` (∂L/∂live -> ∂L/∂canonical).
    """

    tensor: Tensor
    view: Callable[[Tensor], Tensor] = identity
    read: Callable[[Tensor], Tensor] | None = None
    write: Callable[..., Any] | None = None
    gradient: Callable[[Tensor], Tensor] | None = None

    @property
    def is_view(self) -> bool:
        """Whether the canonical value is a view of the live tensor."""
        return self.read is None

    def canonical(self) -> Tensor:
        """The canonical value as it is now, without a graph: a view of the live tensor, or computed from it."""
        import torch

        with torch.no_grad():
            return self.view(self.tensor) if self.read is None else self.read(self.tensor)

    def put(self, value: Tensor) -> None:
        """Store a canonical value. Raises TypeError for a slot with ``read`` and no ``write``."""
        import torch

        with torch.no_grad():
            if self.read is None:
                self.view(self.tensor).copy_(value)
            elif self.write is None:
                raise TypeError("a slot with `read` has no `write`: its value cannot be set")
            elif len(inspect.signature(self.write).parameters) == 2:
                self.write(self.tensor, value)
            else:
                self.tensor.copy_(self.write(value))

    def canonical_gradient(self) -> Tensor | None:
        """∂L/∂canonical from ``tensor.grad``; None where autograd left none.

        Raises TypeError for a slot with ``read`` and no ``gradient``.
        """
        import torch

        if self.tensor.grad is None:
            return None
        with torch.no_grad():
            if self.read is None:
                return self.view(self.tensor.grad)
            if self.gradient is None:
                raise TypeError("a slot with `read` has no `gradient`: its gradient cannot be told")
            return self.gradient(self.tensor.grad)


@dataclass(frozen=True)
class Adapted:
    """An adapted layer: ``module(x)`` with x of shape (..., in_features), and its canonical tensors.

    Canonical names and shapes (torch layout, ``y = x Wᵀ + b``, W is (out, in), r = rank):
    lora, pissa: ``A`` (r, in), ``B`` (out, r); pissa also ``W`` (out, in), the residual base weight.
    dora: also ``m`` (out,). ia3: ``l`` (out,) or, feed-forward, (in,). hra: ``U`` (in, r), reflection i is
    column i. delora: ``A``, ``B``, ``lambda`` (1,), and the persistent buffer ``w_norm`` (in,).
    Of another kind, the same of the matrix that the layer is (Conv1D and quantised: as linear; an embedding: in is the
    number of tokens; a convolution: in is channels times positions of the kernel), in any shape with these numbers in
    this order; under groups a factor may hold the groups' own blocks alone.
    """

    module: nn.Module
    slots: Mapping[str, Slot]


class Unsupported(Exception):
    """ "Not offered, because ...": counted and shown, never a pass."""


class Implementation(ABC):
    """An adapter library behind the audit's interface.

    Required: ``name``, ``version``, ``variants`` and :meth:`adapt`. All else is optional; what is not offered is
    counted and shown as "not offered", never a pass. ``layers``: the kinds of base that :meth:`adapt` takes, out of
    "linear", "conv1d" (transformers', weight (in, out)), "embedding", "conv2d" and "quantised". ``dtypes``: those of
    base and x that it takes. ``inputs``: the numbers of dimensions of x it takes. What is left out of the last two is
    one missing mode each, and the other questions are asked without it.
    """

    name: str
    version: str
    variants: frozenset[str]
    layers: frozenset[str] = frozenset({"linear"})
    dtypes: frozenset[str] = DTYPES
    inputs: frozenset[int] = frozenset({1, 2, 3, 4, 5})

    @abstractmethod
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """``base`` with a fresh adapter, called "default" and in the mode of ``base``, which may be mutated.

        Raises Unsupported for a spec it does not offer.
        """

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """The nearest spec that the library can express (no alpha: alpha = rank; dropout above zero only; ...).

        Subject and reference are then both asked that one; what it could not express is one missing mode.
        """
        return spec

    def save(self, adapted: Adapted, path: Path) -> None:
        """Write the adapter, in whatever mode, merged or not, to ``path`` (a file, or a folder that is made).

        Of several on a layer, the one whose handle ``adapted`` is, alone.
        """
        raise Unsupported(f"{self.name} offers no save")

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``base`` with the adapter that :meth:`save` wrote to ``path``, roles and frozenness as of a fresh one.

        Alpha, rank and options are the file's; a spec that contradicts the file is refused.
        """
        raise Unsupported(f"{self.name} offers no load")

    def merge(self, adapted: Adapted) -> nn.Linear:
        """A plain layer with the adapter folded in; the adapted layer stays as it was."""
        raise Unsupported(f"{self.name} offers no merge")

    def detach(self, adapted: Adapted) -> nn.Linear:
        """The base layer as it was before :meth:`adapt`, bit for bit, also after a merge."""
        raise Unsupported(f"{self.name} offers no detach")

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """Adapt a whole model in place; module name -> adapted layer.

        ``targets``: endings of names, whole parts of them; one that names nothing is refused. None: the variant's
        defaults for the architecture, with (IA)³'s gates on their default sides whatever ``spec.feedforward`` says.
        """
        raise Unsupported(f"{self.name} offers no adapt_model")

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """File and qualified symbol that implements ``aspect`` of ``variant``, for quotes; None if unknown."""
        return None

    # Several adapters on one layer, in PEFT's words

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        """A further adapter on the same layer, and its slots; which are active stays as it was."""
        raise Unsupported(f"{self.name} offers one adapter only")

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """Which adapters are active; with none of them the base answers."""
        raise Unsupported(f"{self.name} offers no switching of adapters")

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        """Take one adapter off, the others stay."""
        raise Unsupported(f"{self.name} offers no deleting of one adapter")

    def merge_in_place(self, adapted: Adapted) -> None:
        """Fold the active adapters into the layer's weight; it stays adapted, :meth:`unmerge` takes them out again."""
        raise Unsupported(f"{self.name} offers no merging in place")

    def unmerge(self, adapted: Adapted) -> None:
        """Take out what :meth:`merge_in_place` folded in."""
        raise Unsupported(f"{self.name} offers no unmerging")

    # Whole models

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        """Apply a checkpoint in PEFT's format in place; module name -> adapted layer.

        A file that does not fit its own configuration, or the model, is refused. Trainable or not is its choice.
        """
        raise Unsupported(f"{self.name} does not read PEFT's format")

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """Write the model's adapters in PEFT's format."""
        raise Unsupported(f"{self.name} does not write PEFT's format")

    def merge_model(self, model: nn.Module) -> nn.Module:
        """The model with all its adapters folded in, ``model`` or another; tied weights compute what they did."""
        raise Unsupported(f"{self.name} offers no merging of whole models")

"""What the tensors of one adapted module mean, and what the corpus and the commands know of a method.

Kinds of layer and the layout of their weight: linear (out, in), conv1d (in, out), embedding (number, dim), conv2d
(out, in, height, width), experts_out_in (E, out, in) and experts_in_out (E, in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oracles.vectors.held import Held
from oracles.vectors.update import LowRank, Replace, Update

Updates = dict[str, Update]


@dataclass(frozen=True)
class Reading:
    """What a wrong consumer would make of one module."""

    id: str
    sentence: str
    updates: Updates  # full tensor name -> update; a tensor that is missing here is read rightly


@dataclass(frozen=True)
class Method:
    """A method in PEFT's format; `oracles/vectors/<id>.py` has one, and the vectors that are for it.

    ``endings``: the names of PEFT's tensors behind the module's, as regular expressions, and the factor that each is;
    an adapter's own name may stand in between, as in a raw state dict. ``shared``: the same for tensors that all
    modules have in common, by their full names.
    """

    id: str
    peft_type: str
    endings: Mapping[str, str]
    updates: Callable[[AdaptedModule], Updates]  # name of the module's tensor -> what is done to it
    readings: tuple[Callable[[AdaptedModule], Iterator[Reading]], ...]
    read: Callable[[Held], AdaptedModule]  # raises Unreadable
    is_meant: Callable[[Mapping[str, Any]], bool] = lambda config: (
        True
    )  # by a configuration of this peft_type
    shared: Mapping[str, str] = field(default_factory=dict)
    has_rank: bool = True
    alpha: str = ""  # the configuration's field of α, where the scale is made from it
    scale: Callable[[Held], float | None] = lambda held: None  # of the update, as inspect shows it
    oddities: Callable[[Mapping[str, Tensor]], Iterator[str]] = lambda factors: iter(
        ()
    )  # of factors, in words
    takes_parameters: bool = False  # whether PEFT applies it to bare parameters (stacked experts)


@dataclass(frozen=True)
class AdaptedModule:
    """One module's part of an adapter file; ``factors`` in PEFT's layout, by the names of its method's file."""

    module: str
    method: Method
    kind: str
    factors: Mapping[str, Tensor]
    rank: int = 0
    alpha: float = 0.0
    rslora: bool = False
    default_rank: int = 0
    default_alpha: float = 0.0
    has_bias: bool = False
    flags: frozenset[str] = frozenset()  # options of its method that are on
    parameter: str = "weight"
    experts: int = 1
    parts: tuple[int, ...] = ()  # the rows of a fused projection
    replaced: Mapping[str, Tensor] = field(default_factory=dict)  # tensors that the file holds whole

    @property
    def scale(self) -> float:
        """``α / r`` (LoRA §4.1), or ``α / √r`` (rsLoRA Eq. (5))."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def named(self, tensor: str) -> str:
        """The name of one of the module's tensors in the base."""
        return f"{self.module}.{tensor}" if self.module else tensor

    def updates(self) -> Updates:
        """Name of a tensor of the base -> what is done to it."""
        found = self.method.updates(self)
        whole = {name: Replace(value) for name, value in self.replaced.items()}
        return {self.named(name): update for name, update in {**found, **whole}.items()}

    @property
    def update(self) -> Update:
        """What is done to the weight."""
        return self.updates()[self.named(self.parameter)]

    def read_as(self, identity: str, sentence: str, update: Update, tensor: str = "") -> Reading:
        """A reading that has the weight, or another tensor, otherwise."""
        return Reading(identity, sentence, {self.named(tensor or self.parameter): update})


def _added(a: AdaptedModule) -> Iterator[Reading]:
    added: Updates = {
        a.named(n): LowRank(v.double().reshape(v.shape[0], -1), torch.eye(v[0].numel()))
        for n, v in a.replaced.items()
    }
    yield Reading("saved.added", "the saved tensor is added to the base's", added)


def _not_read(held: Held) -> AdaptedModule:
    raise NotImplementedError(f"{held.module} is held whole")


# A module that the file holds whole (modules_to_save, trained biases): of no method.
WHOLE = Method("", "", {}, updates=lambda a: {}, readings=(_added,), read=_not_read)

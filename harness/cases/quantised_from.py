"""What a layer was quantised from: a subject's process cannot take the result, but it can quantise the same again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

NOTE = "_quantised_from"


@dataclass(frozen=True)
class QuantisedFrom:
    """The quantiser's name, and the weight (out, in) and bias (out,) of the linear layer that it was given."""

    quantiser: str
    weight: Tensor
    bias: Tensor | None


def note_quantised(layer: nn.Module, quantiser: str, weight: Tensor, bias: Tensor | None) -> None:
    """Note on a layer what it was quantised from; copies of the layer carry it along."""
    layer.__dict__[NOTE] = QuantisedFrom(quantiser, weight, bias)


def quantised_from(layer: nn.Module) -> QuantisedFrom | None:
    """What the audit noted on a layer that it quantised itself; None of any other."""
    found = layer.__dict__.get(NOTE)
    return found if isinstance(found, QuantisedFrom) else None

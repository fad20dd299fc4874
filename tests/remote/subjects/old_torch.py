"""A right library beside a torch that multiplies no matrices in float16, and one that itself refuses float16."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[3]))

from oracles.implementation import Adapted, AdapterSpec
from tests.subjects import wrapped

PRODUCT = nn.functional.linear


def without_half(x: Tensor, *others: Any) -> Tensor:
    """The product, as an older torch has it."""
    if x.dtype == torch.float16:
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
    return PRODUCT(x, *others)


class Old(wrapped.Library):
    """The library there."""

    variants = frozenset({"lora"})

    def __init__(self) -> None:
        super().__init__()
        nn.functional.linear = without_half  # type: ignore[assignment]


class Refuses(wrapped.Library):
    """A library that raises for a float16 base."""

    variants = frozenset({"lora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if base.weight.dtype == torch.float16:
            raise ValueError("no float16 here")
        return super().adapt(base, spec)

"""What an adapter folder holds of one module, with what the base and the configuration say about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oracles.vectors.unreadable import Unreadable


@dataclass(frozen=True)
class Held:
    """Tensors by the method's own names, in PEFT's layout, and all that it takes to say what they mean.

    ``rank`` and ``alpha`` are the module's, patterns applied; ``default_rank`` and ``default_alpha`` the
    configuration's; a method without them has zero.
    """

    module: str
    factors: Mapping[str, Tensor]
    keys: Mapping[str, str]  # factor -> its name in the file, for messages
    shape: tuple[int, ...]  # of the weight that is adapted
    has_bias: bool
    config: Mapping[str, Any]  # adapter_config.json
    rank: int = 0
    alpha: float = 0.0
    default_rank: int = 0
    default_alpha: float = 0.0
    parameter: str = "weight"
    stacked: str = ""  # kind and ...
    experts: int = 1  # ... number of stacked experts, where the parameter is one
    shared: Mapping[str, Tensor] = field(default_factory=dict)  # what all modules of the file have in common
    whole: Mapping[str, Tensor] = field(default_factory=dict)  # tensors that are held as they are

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the file says that weights are (in, out)."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def kernel(self) -> tuple[int, ...]:
        """A convolution's height and width; () for a matrix."""
        return self.shape[2:]

    def expect_factors(self, needed: Collection[str], optional: Collection[str] = ()) -> None:
        """Raises Unreadable where a factor is missing or is not the method's."""
        for name in sorted(set(needed) - self.factors.keys()):
            beside = ", ".join(sorted(self.factors))
            raise Unreadable(f"the adapter has no {name} for {self.module}, beside its {beside}")
        for name in sorted(self.factors.keys() - set(needed) - set(optional)):
            raise Unreadable(f"the adapter holds {self.keys[name]!r}, for which its configuration has no use")

    def expect_shape(self, factor: str, *shapes: tuple[int, ...]) -> None:
        """Raises Unreadable unless the factor has one of the shapes."""
        found = tuple(self.factors[factor].shape)
        if found not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise Unreadable(f"{self.keys[factor]} has shape {found}, expected {wanted}")

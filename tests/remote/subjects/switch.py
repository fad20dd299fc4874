"""Every hostile subject of the in-process tests behind one process: ``source("use", name)`` chooses."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

sys.path.append(str(Path(__file__).parents[3]))

from oracles.implementation import Adapted, AdapterSpec, Implementation
from tests.subjects import wrapped
from tests.subjects.hostile import HOSTILE


class Switch(Implementation):
    """The chosen subject, by its own name."""

    name = "hostile"
    version = "1"
    variants = frozenset({"lora"})

    def __init__(self) -> None:
        self.chosen: Implementation = wrapped.Library()

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        if variant == "use":
            self.chosen = next(h.make() for h in HOSTILE if h.name == aspect)
        return None

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return self.chosen.adapt(base, spec)

    def save(self, adapted: Adapted, path: Path) -> None:
        self.chosen.save(adapted, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        return self.chosen.load(base, spec, path)

    def merge(self, adapted: Adapted) -> nn.Linear:
        return self.chosen.merge(adapted)

    def detach(self, adapted: Adapted) -> nn.Linear:
        return self.chosen.detach(adapted)

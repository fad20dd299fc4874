"""The subjects of the tests in process, library by library, behind one process: ``source("use", style)`` chooses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from oracles.implementation import Implementation
from tests.subjects import fused, hooked, odd, parametrized, subclassed, transposed, wrapped

STYLES = {
    "fused": fused.Library,
    "hooked": hooked.Library,
    "odd": odd.OwnBackward,
    "parametrized": parametrized.Library,
    "subclassed": subclassed.Library,
    "transposed": transposed.Library,
    "wrapped": wrapped.Library,
}


class Styles(Implementation):
    """The chosen library."""

    name = "styles"
    version = "1"
    variants = frozenset({"lora"})

    def __init__(self):
        self.chosen = wrapped.Library()

    def source(self, variant, aspect):
        if variant == "use":
            self.chosen = STYLES[aspect]()
        return

    def adapt(self, base, spec):
        return self.chosen.adapt(base, spec)

    def merge(self, adapted):
        return self.chosen.merge(adapted)

    def detach(self, adapted):
        return self.chosen.detach(adapted)

"""Five of the broken subjects under names that `--subject` can take: each is wrong in another aspect."""

from __future__ import annotations

from oracles.implementation import Implementation
from tests.subjects.broken import BROKEN


def _made(variant: str, name: str) -> Implementation:
    return next(b for b in BROKEN if (b.variant, b.name) == (variant, name)).make()


SQRT_RANK = _made("lora", "SqrtRank")
MINOR_COMPONENTS = _made("pissa", "MinorComponents")
NORM_OVER_INPUTS = _made("dora", "NormOverInputs")
BIAS_NOT_GATED = _made("ia3", "BiasNotGated")
REVERSED = _made("hra", "Reversed")

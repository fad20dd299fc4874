"""Seeding torch's generator, for good or for a block, without what `torch.manual_seed` costs on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["restored_rng", "seed_torch"]


def seed_torch(seed: int) -> None:
    """What ``torch.manual_seed`` draws on the CPU, and on accelerators that are in use.

    For those that are not, ``torch.manual_seed`` keeps the seed and a formatted stack for later: a millisecond
    per call, and never given back.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def restored_rng(seed: int) -> Iterator[None]:
    """Global CPU randomness from ``seed`` inside, and afterwards as it was."""
    before = torch.get_rng_state()
    seed_torch(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)

"""Seeding torch's generator: `torch.manual_seed` without what it costs where there is no accelerator."""

from __future__ import annotations

import torch

__all__ = ["seed_torch"]


def seed_torch(seed: int) -> None:
    """What ``torch.manual_seed`` draws on the CPU, and on accelerators that are in use.

    For those that are not, ``torch.manual_seed`` keeps the seed and a formatted stack for later: a millisecond
    per call, and never given back.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)

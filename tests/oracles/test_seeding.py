"""Seeding without what `torch.manual_seed` costs draws the same, and leaves nothing behind where it promises so."""

from __future__ import annotations

import torch

from oracles.seeding import restored_rng, seed_torch


def test_the_same_is_drawn_as_after_manual_seed() -> None:
    with restored_rng(0):
        torch.manual_seed(5)
        wanted = torch.randn(3)
        seed_torch(5)
        assert torch.equal(torch.randn(3), wanted)


def test_the_generator_is_as_it_was_afterwards() -> None:
    before = torch.get_rng_state()
    with restored_rng(3):
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)

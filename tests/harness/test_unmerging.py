"""Where unmerging alone is at fault it is one finding, whatever it spoils afterwards, on whatever kind of layer."""

from __future__ import annotations

import torch

from harness.engine.checks import Check
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted
from tests.subjects.broken_lives import BROKEN_LIVES
from tests.subjects.judged import QUICK, audit


def asked(check: Check) -> bool:
    return check.info.aspect == "lifecycle" or check.id.startswith("layers.merge_conv1d")


def test_what_it_spoils_is_not_told_again() -> None:
    """Merged once more, with another adapter added, started, on a Conv1D: all of it is the rest that was left."""
    wrong = next(b for b in BROKEN_LIVES if b.name == "UnmergedInHalf")
    found = audit(wrong.make(), ["lora"], checks=asked, profile=QUICK)
    bugs = [f for f in found.findings if f.tag == "BUG"]
    assert [f.mistake for f in bugs] == ["lifecycle.unmerged_otherwise"]


class EverywhereInHalf(LoraLite):
    """Unmerging takes another update out of every kind of layer than merging put in."""

    def unmerge(self, adapted: Adapted) -> None:
        super().unmerge(adapted)
        with torch.no_grad():
            for name, parameter in adapted.module.named_parameters():
                if name == "weight":
                    parameter += 0.01 * parameter.norm()


def test_a_kind_on_which_it_fails_like_everywhere_is_not_to_blame() -> None:
    """Not "on another kind of layer"."""
    found = audit(EverywhereInHalf(), ["lora"], checks=asked, profile=QUICK)
    bugs = {f.mistake: f for f in found.findings if f.tag == "BUG"}
    assert "layers.unmerged_otherwise" not in bugs
    assert any(c.startswith("layers.merge_conv1d") for c in bugs["lifecycle.unmerged_otherwise"].claims)

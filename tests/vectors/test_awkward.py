"""Folders with awkward names: PEFT reads each as it means, and a reader is blamed for names alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.cases.profiles import Profile
from harness.compare.awkward_checkpoints import AwkwardCase, corpus
from harness.compare.checkpoint_vectors import is_near
from oracles.implementation import Adapted
from oracles.vectors.awkward import TOPICS
from oracles.vectors.corpus import Vector
from reports.model import Claim
from tests.subjects.awkward_loaders import ByItsOwnRule
from tests.subjects.checkpoint_loaders import MergingLoader
from tests.subjects.judged import once

peft = pytest.importorskip("peft")

QUICK = Profile("quick", 4, 0, caps=True)


def every() -> list[object]:
    """Each folder and each plain one, once."""
    cases: list[AwkwardCase] = [case for topic in TOPICS for case in corpus(topic)]
    found: dict[str, Vector] = {v.id: v for case in cases for v in (case.vector, case.plain)}
    return [pytest.param(vector, id=vector.id) for vector in found.values()]


@pytest.mark.parametrize("vector", every())
def test_peft_reads_it_so(vector: Vector) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(vector.build(torch.float32), str(vector.adapter)).eval()
        merged = loaded.merge_and_unload().state_dict()
    wrong = [name for name, right in vector.merged.items() if not is_near(merged[name].double(), right)]
    assert not wrong


def asked(subject: MergingLoader, check: str, variant: str = "lora") -> Claim:
    (claim,) = once(subject, [variant], lambda c: c.id == f"checkpoints.{check}", QUICK)
    return claim


@pytest.mark.parametrize("topic", TOPICS)
def test_the_quick_profile_asks_every_folder(topic: str) -> None:
    claim = asked(MergingLoader("lora"), topic)
    assert claim.outcome == "pass", claim.reason
    assert claim.examples == sum(case.spec.variant == "lora" for case in corpus(topic))


def test_what_is_misread_on_ordinary_names_too_is_told_elsewhere() -> None:
    claim = asked(ByItsOwnRule("lora", lambda config, module: None), "block_numbers")
    assert (claim.outcome, claim.cause) == ("not_applicable", "told_elsewhere")


class HasNoBlocks(MergingLoader):
    """Has not the option at all, and says so."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        if "layers_to_transform" in (folder / "adapter_config.json").read_text():
            raise ValueError("layers_to_transform is not taken")
        return super().load_peft(model, folder)


def test_an_option_that_is_refused_everywhere_is_not_offered() -> None:
    claim = asked(HasNoBlocks("lora"), "block_zero")
    assert (claim.outcome, claim.cause) == ("not_applicable", "not_offered")


class RefusesLongNames(MergingLoader):
    """Takes a saved name that is part of another's for a mistake."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        if "head_1" in (folder / "adapter_config.json").read_text():
            raise ValueError("head_1 stands twice")
        return super().load_peft(model, folder)


def test_a_refusal_counts_where_ordinary_names_are_taken() -> None:
    claim = asked(RefusesLongNames("lora"), "saved_names")
    assert claim.outcome == "fail"
    assert "head_1 stands twice" in str(claim.reason)
    assert claim.witness is not None
    assert claim.witness.case["checkpoint"] == "saved_names.beginnings"
    assert "audit-" not in str(claim.reason)

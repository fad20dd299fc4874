"""Adapters on a model that two processes share: right ones are as in one process, wrong and refused ones are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch.distributed as dist
from torch import nn

from harness.sharded import __main__ as command
from harness.sharded import ranks
from harness.sharded.beside_one import Row, compared
from harness.sharded.jobs import AFTER, BEFORE, FSDP2, Job
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted, AdapterSpec
from oracles.seeding import seed_torch

SPEC = AdapterSpec("dora", rank=2, alpha=3.0)


class SeedsOfItsOwn(LoraLite):
    """Each process draws its own start."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        if dist.is_initialized():
            seed_torch(dist.get_rank())
        return super().adapt_model(model, spec, targets)


class RaisesOnOne(LoraLite):
    """The second process raises, and the first waits for it."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        if dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("no memory on this one")
        return super().adapt_model(model, spec, targets)


def asked(subject: LoraLite, way: str = FSDP2, spec: AdapterSpec = SPEC) -> Row:
    return compared(Job(subject, spec, way), ranks=2)


@pytest.mark.parametrize("variant", sorted(LoraLite.variants))
def test_fsdp_is_as_one_process(variant: str) -> None:
    """Start, output, gradients, ten steps and the file that is saved."""
    row = asked(LoraLite(), spec=AdapterSpec(variant, rank=2, alpha=3.0))
    assert row.holds, row


def test_a_start_of_its_own_is_told() -> None:
    row = asked(SeedsOfItsOwn())
    assert not row.holds
    assert "is off by" in row.answers["start"]


def test_who_raises_is_told_and_nobody_is_waited_for() -> None:
    assert asked(RaisesOnOne()).ended == "RuntimeError: no memory on this one"


def test_who_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 1)
    monkeypatch.setattr(ranks, "_asked", lambda *arguments: __import__("time").sleep(60))
    assert asked(LoraLite()).ended == "a rank did not answer within 1 s"


def test_tensor_parallelism_is_refused_in_a_sentence() -> None:
    row = asked(LoraLite(), BEFORE)
    assert "its weight is sharded over processes" in row.ended
    assert asked(LoraLite(), AFTER).ended, "torch refuses it"


@pytest.mark.parametrize(
    ("line", "words"), [("--variants lara", "expected some of"), ("--subject nobody", "nobody")]
)
def test_bad_input(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(line.split()) == 2
    assert words in capsys.readouterr().err

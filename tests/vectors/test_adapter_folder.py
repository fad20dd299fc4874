"""The reader of adapter folders gives every vector's ΔW, and refuses what has to be refused."""

from __future__ import annotations

import pytest
import torch

from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.vectors.corpus import Vector, vectors
from oracles.vectors.unreadable import Unreadable

ALL = list(vectors())


def _read(vector: Vector) -> dict[str, torch.Tensor]:
    base = BaseCheckpoint(vector.base)
    adapter = AdapterFolder(vector.adapter)
    updates = {n: u for module in adapter.against(base) for n, u in module.updates().items()}
    return {n: u.apply(vector.untied[n]) - vector.untied[n] for n, u in updates.items()}


@pytest.mark.parametrize("vector", [v for v in ALL if v.about["expect"] == "apply"], ids=lambda v: v.id)
def test_it_is_read_rightly(vector: Vector) -> None:
    read, expected = _read(vector), vector.part("delta/")
    assert read.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(read[name], delta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("vector", [v for v in ALL if v.about["expect"] == "refuse"], ids=lambda v: v.id)
def test_it_is_refused(vector: Vector) -> None:
    with pytest.raises(Unreadable) as caught:
        _read(vector)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "vector", [v for v in ALL if v.about["expect"] == "apply_or_refuse"], ids=lambda v: v.id
)
def test_it_is_applied_or_refused(vector: Vector) -> None:
    try:
        read = _read(vector)
    except Unreadable:
        return
    for name, delta in vector.part("delta/").items():
        torch.testing.assert_close(read[name], delta, rtol=1e-10, atol=1e-12)

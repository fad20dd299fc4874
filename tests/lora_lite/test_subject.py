"""lora_lite behind the audit's interface keeps what the interface's words mean."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.subjects.lora_lite import LoraLite
from oracles.implementation import AdapterSpec, Unsupported

from .test_interchange import Deep, X, move

SPECS = [
    AdapterSpec("lora", 4, 6.0),
    AdapterSpec("lora", 4, 6.0, rslora=True),
    AdapterSpec("pissa", 4, 6.0),
    AdapterSpec("dora", 4, 6.0),
    AdapterSpec("ia3"),
    AdapterSpec("ia3", feedforward=True),
    AdapterSpec("hra", 4),
    AdapterSpec("hra", 3, gram_schmidt=True),
    AdapterSpec("delora", 4),
]


@pytest.fixture(
    params=SPECS,
    ids=lambda s: f"{s.variant}{'-rs' * s.rslora}{'-ff' * s.feedforward}{'-gs' * s.gram_schmidt}",
)
def spec(request: pytest.FixtureRequest) -> AdapterSpec:
    return request.param


def test_a_life(spec: AdapterSpec, tmp_path: Path) -> None:
    """Two adapters added, switched, merged, saved, loaded, taken off: the base and its copy are what they were."""
    who, base = LoraLite(), nn.Linear(12, 9).eval()
    own = copy.deepcopy(base)
    first = who.adapt(base, spec)
    move(first.module)
    y = first.module(X)
    second = who.add_adapter(first, "b", spec)
    assert second.module is first.module
    assert second.slots.keys() == first.slots.keys()
    assert all(
        second.slots[name].tensor is not slot.tensor for name, slot in first.slots.items() if name != "W"
    )
    assert torch.equal(first.module(X), y)
    who.set_adapters(first, ["b"])
    move(second.module)
    z = second.module(X)
    who.merge_in_place(first)
    torch.testing.assert_close(first.module(X), z, rtol=1e-4, atol=1e-4)
    who.save(second, tmp_path / "b")
    who.save(first, tmp_path / "a")
    who.unmerge(first)
    assert torch.equal(first.module(X), z)
    merged = who.merge(first)
    torch.testing.assert_close(merged(X), z, rtol=1e-4, atol=1e-4)
    assert torch.equal(first.module(X), z)
    who.set_adapters(first, [])
    assert torch.equal(first.module(X), own(X))
    who.set_adapters(first, ["default"])
    assert torch.equal(first.module(X), y)
    who.delete_adapter(first, "b")
    plain = who.detach(first)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), own.parameters(), strict=True))
    for name, wanted in (("a", y), ("b", z)):
        loaded = who.load(copy.deepcopy(own), spec, tmp_path / name)
        assert torch.equal(loaded.module(X), wanted)
        assert not loaded.module.training


def test_a_spec_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    who, own = LoraLite(), nn.Linear(12, 9)
    who.save(who.adapt(copy.deepcopy(own), AdapterSpec("lora", 4, 6.0)), tmp_path / "a")
    for other in (AdapterSpec("lora", 4, 4.0), AdapterSpec("lora", 2, 6.0), AdapterSpec("dora", 4, 6.0)):
        with pytest.raises(ValueError, match="was asked for"):
            who.load(copy.deepcopy(own), other, tmp_path / "a")


@pytest.mark.parametrize(
    ("base", "variant"),
    [(nn.Embedding(7, 5), "ia3"), (nn.Conv2d(4, 4, 3), "hra"), (nn.Conv2d(4, 4, 3, groups=2), "dora")],
)
def test_what_is_not_offered_says_so(base: nn.Module, variant: str) -> None:
    with pytest.raises(Unsupported):
        LoraLite().adapt(base, AdapterSpec(variant, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [Conv1D(5, 12), nn.Embedding(7, 5), nn.Conv2d(4, 6, 3, groups=2)], ids=repr)
def test_other_layers(base: nn.Module) -> None:
    adapted = LoraLite().adapt(base, AdapterSpec("lora", 4))  # type: ignore[arg-type]
    assert {"A", "B"} == set(adapted.slots)


def test_whole_models(spec: AdapterSpec, tmp_path: Path) -> None:
    who, model = LoraLite(), Deep()
    fresh = copy.deepcopy(model)
    found = who.adapt_model(model, spec, ["a", "b"])
    assert len(found) == 6
    move(model)
    y = model(X)
    who.save_peft(model, tmp_path)
    assert len(who.load_peft(fresh, tmp_path)) == 6
    torch.testing.assert_close(fresh(X), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(who.merge_model(model)(X), y, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="nowhere"):
        who.adapt_model(Deep(), spec, ["a", "nowhere"])


def test_an_option_that_is_not_known_is_not_offered() -> None:
    with pytest.raises(Unsupported, match="no option 'use_mystery'"):
        LoraLite().adapt(nn.Linear(3, 4), AdapterSpec("lora", options={"use_mystery": True}))
    adapted = LoraLite().adapt(nn.Linear(3, 4), AdapterSpec("lora", 4, options={"rank_pattern": {".*": 2}}))
    assert adapted.slots["A"].tensor.shape == (2, 3)

"""The corpus against the installed PEFT, in float64; where PEFT differs stands here and in docs/vectors.md."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from oracles.vectors.corpus import Vector, vectors

peft = pytest.importorskip("peft")

ALL = list(vectors())
# PEFT's merge changes both names of a tied tensor, its adapted model only one of them.
MERGED_BOTH = {
    "tied.embedding_lora",
    "tied.embedding_rslora",
    "tied.embedding_dora",
    "tied.head",
    "tied.both",
}
# Loaded with a warning at most, and not applied.
IGNORED = {
    "prefix.no_prefix",
    "prefix.one_part_of_the_prefix",
    "prefix.data_parallel",
    "prefix.compiled",
    "prefix.prefix_twice",
    "prefix.transformer",
}
TAKEN = {
    f"refuse.{name}"
    for name in (
        "missing_A",
        "missing_B",
        "missing_module",
        "extra_module",
        "excluded_module",
        "untargeted_module",
        "extra_tensor",
        "renamed_modules",
        "separate_for_fused",
        "no_tensors",
        "dora_without_magnitude",
        "dora_flag_off",
        "ia3_missing",
        "delora_without_lambda",
    )
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dtype(vector: Vector) -> torch.dtype:
    # PEFT factorises a base for PiSSA in half or single precision only.
    return torch.float32 if vector.about["flags"]["method"] == "pissa" else torch.float64


def _load(vector: Vector) -> torch.nn.Module:
    return peft.PeftModel.from_pretrained(vector.build(_dtype(vector)), str(vector.adapter)).eval()


def _tolerance(vector: Vector) -> float:
    return 2e-5 if _dtype(vector) == torch.float32 else 1e-10


@pytest.mark.parametrize("vector", [v for v in ALL if v.about["expect"] == "apply"], ids=lambda v: v.id)
def test_peft_reads_it_so(vector: Vector) -> None:
    model, dtype = _load(vector), _dtype(vector)
    for i, x in enumerate(vector.inputs):
        with torch.no_grad():
            logits = model(x.to(dtype) if x.is_floating_point() else x)
        gap = (logits.double() - vector.numbers[f"logits/{i}"]).abs().max()
        assert gap < _tolerance(vector)
    merged = model.merge_and_unload().state_dict()
    gap = max(float((merged[n].double() - t).abs().max()) for n, t in vector.merged.items())
    assert (gap < _tolerance(vector)) == (vector.id not in MERGED_BOTH)


@pytest.mark.parametrize(
    "vector", [v for v in ALL if v.about["expect"] == "apply_or_refuse"], ids=lambda v: v.id
)
def test_peft_applies_it_or_refuses(vector: Vector) -> None:
    try:
        merged = _load(vector).merge_and_unload().state_dict()
    except Exception:
        assert vector.id not in IGNORED
        return
    gap = max(float((merged[n].double() - t).abs().max()) for n, t in vector.merged.items())
    assert (gap < _tolerance(vector)) == (vector.id not in IGNORED)


@pytest.mark.parametrize("vector", [v for v in ALL if v.about["expect"] == "refuse"], ids=lambda v: v.id)
def test_peft_refuses_it(vector: Vector) -> None:
    try:
        _load(vector)
    except Exception:
        assert vector.id not in TAKEN
    else:
        assert vector.id in TAKEN

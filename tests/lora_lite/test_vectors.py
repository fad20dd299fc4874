"""lora_lite and the checkpoint vectors: what it supports it reads, merges and writes rightly, the rest it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lora_lite
from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.checkpoints.vectors_run import RIGHT, judged
from oracles.vectors.corpus import Vector, vectors

VARIANTS = {"lora", "pissa", "dora", "ia3", "hra", "delora"}
# What it has no counterpart for, by the words with which it says so.
LACKS = {
    "lora_bias=True": {"lora.bias", "rslora.bias", "lora.bias.conv2d", "lora.bias.fused"},
    "bias='": {"lora.trained_bias.lora_only", "lora.trained_bias.all"},
    "modules_to_save=": {
        "saved.head", "saved.norm", "saved.embedding", "saved.classifier", "saved.two", "tied.saved_head",
    },
    "target_parameters=": {
        f"experts.{layout}.{name}"
        for layout in ("out_in", "in_out")
        for name in ("first", "second", "both", "rslora", "rank_one")
    },
    "of kind linear, conv1d": {
        "ia3.conv2d.output", "ia3.conv2d.input", "hra.conv2d", "hra.conv2d.gram_schmidt",
    },
}  # fmt: skip
REFUSED = {name: words for words, names in LACKS.items() for name in names}
ASKED = [v for v in vectors() if v.about["flags"]["method"] in VARIANTS]
READ = [v for v in ASKED if v.about["expect"] == "apply" and v.id not in REFUSED]


@pytest.mark.parametrize("vector", READ, ids=lambda v: v.id)
def test_it_reads_merges_and_writes(vector: Vector, tmp_path: Path) -> None:
    model = vector.build(torch.float32)
    lora_lite.load_peft(model, vector.adapter)
    for i, x in enumerate(vector.inputs):
        with torch.no_grad():
            found = model(x.float() if x.is_floating_point() else x).double()
        torch.testing.assert_close(found, vector.numbers[f"logits/{i}"], rtol=1e-4, atol=1e-4)
    lora_lite.save_peft(model, tmp_path)
    _means_the_same(vector, tmp_path)
    assert judged(vector, dict(lora_lite.merge(model).state_dict())).verdict == RIGHT


def _means_the_same(vector: Vector, folder: Path) -> None:
    """The folder, read by the equations alone, has every ΔW of the vector."""
    base = BaseCheckpoint(vector.base)
    adapter = AdapterFolder(folder)
    updates = {n: u for module in adapter.against(base) for n, u in module.updates().items()}
    assert updates.keys() == vector.part("delta/").keys()
    for name, update in updates.items():
        found = update.apply(vector.untied[name]) - vector.untied[name]
        right = vector.part("delta/")[name]
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("vector", [v for v in ASKED if v.id in REFUSED], ids=lambda v: v.id)
def test_what_it_lacks_it_names(vector: Vector) -> None:
    with pytest.raises(ValueError, match=REFUSED[vector.id]):
        lora_lite.load_peft(vector.build(torch.float32), vector.adapter)


@pytest.mark.parametrize("vector", [v for v in ASKED if v.about["expect"] == "refuse"], ids=lambda v: v.id)
def test_it_is_refused(vector: Vector) -> None:
    model = vector.build(torch.float32)
    with pytest.raises(ValueError, match=r"\S"):
        lora_lite.load_peft(model, vector.adapter)
    assert model.state_dict().keys() == vector.build().state_dict().keys()


@pytest.mark.parametrize(
    "vector", [v for v in ASKED if v.about["expect"] == "apply_or_refuse"], ids=lambda v: v.id
)
def test_it_is_applied_or_refused(vector: Vector) -> None:
    model = vector.build(torch.float32)
    try:
        lora_lite.load_peft(model, vector.adapter)
    except ValueError:
        return
    assert judged(vector, dict(lora_lite.merge(model).state_dict())).verdict == RIGHT

"""save and load: exact, whole or not at all, never a pickle."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lora_lite
from lora_lite import AdapterConfig, LoRAConfig, PiSSAConfig

from .conftest import Block, linear, perturb
from .test_adapter import IDS, for_block


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_reload_is_exact(config: AdapterConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Block().to(dtype)
    fresh = copy.deepcopy(model)
    lora_lite.attach(model, for_block(config))
    perturb(model, 0.1)
    lora_lite.save(model, tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    loaded = lora_lite.load(fresh, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert list(loaded) == list(lora_lite.adapters(model))
    assert torch.equal(fresh(IDS), model(IDS))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]


def test_reload_in_a_new_process(config: AdapterConfig, tmp_path: Path) -> None:
    if config.variant not in {"pissa", "delora"}:
        pytest.skip("one variant bound to its base and one with a buffer are enough for a slow test")
    layer, x = linear(), torch.randn(3, 12)
    torch.save({"base": layer.state_dict(), "x": x}, tmp_path / "base.pt")
    lora_lite.attach(layer, config)
    perturb(layer)
    lora_lite.save(layer, tmp_path / "a.safetensors")
    torch.save(layer(x).detach(), tmp_path / "y.pt")
    program = (
        "import torch, lora_lite; d = torch.load('base.pt'); layer = torch.nn.Linear(12, 9)\n"
        "layer.load_state_dict(d['base']); lora_lite.load(layer, 'a.safetensors')\n"
        "assert torch.equal(layer(d['x']), torch.load('y.pt'))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_the_file_is_one_safetensors_with_its_config(config: AdapterConfig, tmp_path: Path) -> None:
    layer = linear()
    lora_lite.attach(layer, config)
    lora_lite.save(layer, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    _, meta = content(tmp_path / "a.safetensors")
    assert lora_lite.config_from_dict(json.loads(meta["config"])) == config


def test_pissa_refuses_another_base(tmp_path: Path) -> None:
    layer = linear()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight[0, 0] += 1e-6
    lora_lite.attach(layer, PiSSAConfig(rank=2))
    lora_lite.save(layer, tmp_path / "a.safetensors")
    refused(other, tmp_path / "a.safetensors", "base weight is not the one")
    refused(lora_lite.detach(layer).double(), tmp_path / "a.safetensors", "base weight|dtype")


def test_pissa_refuses_to_save_over_a_changed_residual(tmp_path: Path) -> None:
    layer = linear()
    lora_lite.attach(layer, PiSSAConfig(rank=2))
    with torch.no_grad():
        layer.weight.mul_(1.01)
    with pytest.raises(ValueError, match="residual weight was changed"):
        lora_lite.save(layer, tmp_path / "a.safetensors")
    assert not os.listdir(tmp_path)


def refused(model: nn.Module, path: Path, message: str) -> None:
    """The load raises and leaves no trace."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        lora_lite.load(model, path)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def edit(path: Path, tensors=None, meta=None) -> None:  # type: ignore[no-untyped-def]
    """Rewrite a file with some tensors or metadata replaced; None deletes."""
    old, info = content(path)
    new = {**old, **(tensors or {})}
    info.update(meta or {})
    kept = {k: v for k, v in info.items() if v is not None}
    save_file({k: v for k, v in new.items() if v is not None}, path, metadata=kept)


LAYER = "layers.1.q_proj"
BAD_CONFIG = json.dumps({"variant": "lora", "rank": 2, "alhpa": 3})


@pytest.mark.parametrize(
    ("tensors", "meta", "message"),
    [
        ({f"{LAYER}.A": None}, {}, r"the tensors \['B'\], expected \['A', 'B'\]"),
        ({f"{LAYER}.C": torch.zeros(1)}, {}, r"expected \['A', 'B'\]"),
        ({"layers.9.q_proj.A": torch.zeros(1)}, {}, "lists no layer 'layers.9.q_proj'"),
        ({f"{LAYER}.A": torch.zeros(3, 12)}, {}, r"shape \(3, 12\), expected \(2, 12\)"),
        ({f"{LAYER}.A": torch.zeros(2, 12, dtype=torch.int32)}, {}, "dtype torch.int32"),
        ({f"{LAYER}.A": torch.zeros(2, 12, dtype=torch.float64)}, {}, "dtype torch.float64"),
        ({}, {"lora_lite": "2"}, "format 1 .its format: 2"),
        ({}, {"lora_lite": None}, "no lora_lite file"),
        ({}, {"config": "{"}, "damaged"),
        ({}, {"config": None}, "damaged"),
        ({}, {"config": "[]"}, "damaged|unknown variant"),
        ({}, {"config": BAD_CONFIG}, "no field alhpa"),
        ({}, {"config": json.dumps({"variant": "hra", "rank": 2})}, r"expected \['U'\]"),
        ({}, {"layers": json.dumps({})}, "lists no layer"),
        ({}, {"layers": json.dumps([1])}, "damaged"),
        ({}, {"layers": json.dumps({LAYER: 3})}, "damaged"),
        ({}, {"layers": json.dumps({LAYER: {"options": 3, "base_sha256": None}})}, "damaged"),
    ],
)
def test_a_bad_file_changes_nothing(tensors, meta, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, path = Block(), tmp_path / "a.safetensors"
    fresh = copy.deepcopy(model)
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["q_proj"]))
    lora_lite.save(model, path)
    edit(path, tensors, meta)
    refused(fresh, path, message)


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    model, path = Block(), tmp_path / "a.safetensors"
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["q_proj"]))
    lora_lite.save(model, path)
    refused(linear(), path, "'layers.0.q_proj', which this Linear lacks")
    refused(nn.Module(), path, "lacks")


def test_an_adapted_layer_is_not_adapted_again(tmp_path: Path) -> None:
    layer, path = linear(), tmp_path / "a.safetensors"
    lora_lite.attach(layer, LoRAConfig(rank=2))
    lora_lite.save(layer, path)
    with pytest.raises(ValueError, match="already has a LoRA adapter"):
        lora_lite.load(layer, path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_never_opened(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), "a.safetensors", _use_new_zipfile_serialization=not legacy)
    refused(linear(), tmp_path / "a.safetensors", "is a pickle")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("start", [b"", b"\0" * 8, b"\xff" * 40, b"PK", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{}"])
def test_junk_is_refused(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(start)
    refused(linear(), tmp_path / "junk", "not a readable safetensors file|is a pickle")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    layer, path = linear(3, 2), tmp_path / "a.safetensors"
    fresh = copy.deepcopy(layer)
    lora_lite.attach(layer, LoRAConfig(rank=1))
    lora_lite.save(layer, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(fresh, path, "not a readable safetensors file")


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    layer = linear()
    refused(layer, tmp_path / "missing", "no adapter file")
    refused(layer, tmp_path, "no adapter file")
    lora_lite.attach(layer, LoRAConfig(rank=1))
    for path in (tmp_path, tmp_path / "no" / "such" / "folder"):
        with pytest.raises(ValueError, match="path must name a file in an existing folder"):
            lora_lite.save(layer, path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, path = linear(), tmp_path / "a.safetensors"
    lora_lite.attach(layer, LoRAConfig(rank=1))
    lora_lite.save(layer, path)
    old = path.read_bytes()

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    perturb(layer)
    with pytest.raises(OSError, match="disk full"):
        lora_lite.save(layer, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_one_file_holds_one_configuration(tmp_path: Path) -> None:
    model = Block()
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["q_proj"]))
    lora_lite.attach(model, LoRAConfig(rank=3, targets=["down_proj"]))
    with pytest.raises(ValueError, match="one configuration"):
        lora_lite.save(model, tmp_path / "a.safetensors")

"""The code of docs/lora_lite.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lora_lite
from lora_lite.variant import VARIANTS

GUIDE = (Path(__file__).parents[2] / "docs" / "lora_lite.md").read_text()
QUICKSTART, TARGETS, VARIANT = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)


def run(code: str, **names: Any) -> dict[str, Any]:
    """The names after running ``code`` as a program of its own, without this module's __future__."""
    scope = {**names, "__name__": "__main__"}
    exec(compile(code, "docs/lora_lite.md", "exec", dont_inherit=True), scope)
    return scope


def test_quickstart_trains_and_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run(QUICKSTART)
    model, ids = scope["model"], scope["ids"]
    trained = model(ids).logits
    assert not torch.equal(lora_lite.detach(model)(ids).logits, trained)
    lora_lite.load(model, "adapter.safetensors")
    assert torch.equal(model(ids).logits, trained)


def test_targets_are_valid_configs() -> None:
    run(TARGETS, **vars(lora_lite))


def test_a_variant_in_one_file(tmp_path: Path) -> None:
    try:
        run(VARIANT)
        layer, x = nn.Linear(4, 3), torch.randn(2, 4)
        base = layer(x)
        config = lora_lite.config_from_dict({"variant": "bias", "size": 0.5})
        lora_lite.attach(layer, config)
        torch.testing.assert_close(layer(x), base + 0.5)
        lora_lite.save(layer, tmp_path / "bias.safetensors")
        lora_lite.load(lora_lite.detach(layer), tmp_path / "bias.safetensors")
        torch.testing.assert_close(lora_lite.merge(layer)(x), base + 0.5)
    finally:
        VARIANTS.pop("bias", None)

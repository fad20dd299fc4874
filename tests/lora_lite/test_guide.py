"""The code of docs/lora_lite.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lora_lite
from lora_lite.variant import VARIANTS

GUIDE = (Path(__file__).parents[2] / "docs" / "lora_lite.md").read_text()
QUICKSTART, SEVERAL, TARGETS, VARIANT = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)


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


def test_several_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run(QUICKSTART)
    model, ids = scope["model"], scope["ids"]
    trained = model(ids).logits
    after = run(SEVERAL, **{name: scope[name] for name in ("model", "ids", "lora_lite")})
    assert torch.equal(lora_lite.detach(model)(ids).logits, after["base_logits"])
    lora_lite.load(model, "second.safetensors", "second")
    assert torch.equal(model(ids).logits, after["base_logits"])  # it was never trained
    assert not torch.equal(trained, after["base_logits"])


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


README = (Path(__file__).parents[2] / "README.md").read_text()
TEN_LINES = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "import lora_lite" in c)
CONFIGS = (
    "LoRAConfig(rank=8, alpha=16)", "PiSSAConfig(rank=8, alpha=16)", "DoRAConfig(rank=8, alpha=16)", "IA3Config()",
    "HRAConfig(rank=8)", "DeLoRAConfig(rank=8)",
)  # fmt: skip
AGAIN = """
import pathlib
for adapter in sorted(pathlib.Path().glob("*.safetensors")):
    lora_lite.load(model, adapter)
    assert torch.equal(model(ids).logits, torch.load(adapter.stem + ".pt")), adapter
    lora_lite.detach(model)
print("same logits")
"""


def test_the_readme_trains_each_variant_and_a_new_process_reloads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty steps and a file for each; a process that never trained gets the same logits from all six."""
    monkeypatch.chdir(tmp_path)
    for number, config in enumerate(CONFIGS):
        scope = run(
            TEN_LINES.replace("DoRAConfig(rank=8, alpha=16)", config).replace("adapter.s", f"{number}.s")
        )
        torch.save(scope["model"](scope["ids"]).logits.detach(), f"{number}.pt")
    base = TEN_LINES.partition("lora_lite.attach(")[0]
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    done = subprocess.run(
        [sys.executable, "-c", threads + base + AGAIN], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "same logits", done.stderr
    assert len(list(tmp_path.glob("*.safetensors"))) == len(CONFIGS)

"""PEFT's checkpoint folders, both ways."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lora_lite

from .conftest import CONFIGS, perturb

PEFT: dict[str, Any] = {
    "lora": lambda t: peft.LoraConfig(r=4, lora_alpha=6, target_modules=t),
    "pissa": lambda t: peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=t),
    "dora": lambda t: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=t),
    "ia3": lambda t: peft.IA3Config(target_modules=t, feedforward_modules=["b"]),
    "hra": lambda t: peft.HRAConfig(r=4, target_modules=t),
    "delora": lambda t: peft.DeloraConfig(r=4, delora_lambda=3, target_modules=t),
}
X = torch.linspace(-1, 1, 24).view(2, 12)


def net() -> nn.Module:
    model = nn.Sequential()
    model.add_module("a", nn.Linear(12, 10))
    model.add_module("b", nn.Linear(10, 9))
    return model


@pytest.mark.parametrize("variant", list(PEFT))
def test_reads_what_peft_wrote(variant: str, tmp_path: Path) -> None:
    model = net()
    theirs = peft.get_peft_model(copy.deepcopy(model), PEFT[variant](["a", "b"]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    lora_lite.load_peft(model, tmp_path)
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", list(PEFT))
def test_peft_reads_what_it_wrote(variant: str, tmp_path: Path) -> None:
    model = net()
    base = copy.deepcopy(model)
    fields = {**CONFIGS[variant].to_dict(), "targets": ["a", "b"]}
    if variant == "ia3":
        fields["feedforward"] = ["b"]
    lora_lite.attach(model, lora_lite.config_from_dict(fields))
    perturb(model, 0.1)
    lora_lite.save_peft(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_qalora": True}, "use_qalora=True, which lora_lite does not have"),
        ({"lora_bias": True}, "lora_bias=True, which lora_lite does not have"),
        ({"modules_to_save": ["b"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"some_future_option": 1}, "some_future_option=1, which lora_lite does not have"),
        ({"rank_pattern": {"a": 2}}, r"a.lora_A.weight: the file has shape \(4, 12\), expected \(2, 12\)"),
        ({"target_modules": ["a"]}, "has tensors for 'b', which its target_modules do not name"),
        ({"target_modules": "a|b", "exclude_modules": ["b"]}, "has tensors for 'b'"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; lora_lite reads LORA"),
        ({"r": 3}, r"shape \(4, 12\), expected \(3, 12\)"),
        ({"use_dora": True}, r"expected \['lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector'\]"),
    ],
)
def test_what_it_cannot_take_changes_nothing(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    peft.get_peft_model(copy.deepcopy(model), PEFT["lora"](["a", "b"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        lora_lite.load_peft(model, tmp_path)
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_a_pickled_folder_is_refused(tmp_path: Path) -> None:
    model = net()
    theirs = peft.get_peft_model(copy.deepcopy(model), PEFT["lora"](["a", "b"]))
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    if not (tmp_path / "adapter_model.bin").exists():
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which is never opened"):
        lora_lite.load_peft(model, tmp_path)

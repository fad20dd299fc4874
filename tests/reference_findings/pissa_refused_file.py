"""A PiSSA checkpoint that cannot be read is refused, but the base stays factorised."""

import tempfile
from pathlib import Path

import peft
import torch
from torch import nn


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3, bias=False))


config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="pissa")
model, x = base(), torch.eye(4)
before = model(x).detach()

with tempfile.TemporaryDirectory() as folder:
    peft.get_peft_model(base(), config).save_pretrained(folder)
    path = Path(folder) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    try:
        peft.PeftModel.from_pretrained(model, folder)
    except Exception as error:
        print(f"refused: {type(error).__name__}")
    else:
        raise AssertionError("the damaged file was loaded")

layer = model[0]
weight = getattr(layer, "base_layer", layer).weight.detach()
away = float((weight.mT - before).norm() / before.norm())
print(f"{type(layer).__module__}; its base weight is {away:.2f} away from what it was")
assert away > 0.3

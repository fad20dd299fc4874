"""A checkpoint that lacks a tensor is loaded with a warning: the tensor keeps its fresh value, no exception."""

import tempfile
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3))


model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"]))
with torch.no_grad():
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.normal_()
x = torch.randn(5, 4)

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if "lora_B" not in name}, path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = peft.PeftModel.from_pretrained(base(), folder)

off = float((loaded(x) - base()(x)).detach().norm())
print(f"loaded without lora_B; distance from the base's output: {off}; warnings: {len(said)}")
assert off == 0.0
assert any("missing adapter keys" in str(w.message) for w in said)

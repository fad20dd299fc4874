# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""HRA and LoRA on a convolution that pads circularly: the adapter pads with zeros."""

import copy

import peft
import torch
from torch import nn

torch.manual_seed(0)
base, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), torch.randn(1, 2, 6, 6)
hra = peft.get_peft_model(copy.deepcopy(base), peft.HRAConfig(r=2, target_modules=["0"])).eval()
lora = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(copy.deepcopy(base), lora).eval()
with torch.no_grad():
    off = float((hra(x) - base(x)).norm() / base(x).norm())
    adapted, merged = model(x), copy.deepcopy(model).merge_and_unload()(x)
    gap = float((adapted - merged).norm() / merged.norm())
print(f"expected a fresh HRA to answer as the base, got {100 * off:.0f} % beside it")
print(f"expected the merged LoRA to answer as the adapted one, got {100 * gap:.0f} % beside it")

"""A convolution that pads circularly: PEFT's adapters pad with zeros, and so do another thing than what they merge."""

import copy

import peft
import torch
from torch import nn

torch.manual_seed(0)
base = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
x = torch.randn(1, 2, 6, 6)
for name, config in (
    ("LoRA", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)),
    ("DoRA", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, use_dora=True)),
):
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        adapted, merged = model(x), copy.deepcopy(model).merge_and_unload()(x)
    gap, within = float((adapted - merged).norm()), float((adapted - merged)[..., 1:-1, 1:-1].norm())
    print(
        f"{name}: merged is off by {100 * gap / float(merged.norm()):.0f} %, inside the edges by {within:.0e}"
    )
    assert gap > 0.01 * float(merged.norm())
model = peft.get_peft_model(copy.deepcopy(base), peft.HRAConfig(r=2, target_modules=["0"])).eval()
with torch.no_grad():
    off = float((model(x) - base(x)).norm() / base(x).norm())
print(f"HRA: a fresh adapter changes the output by {100 * off:.0f} %")
assert off > 0.01

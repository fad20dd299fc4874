"""LoRA, DoRA and HRA on a dilated convolution: the adapter's own convolution is not dilated."""

import peft
import torch
from torch import nn

x = torch.ones(1, 2, 8, 8)
lora = peft.LoraConfig(r=2, target_modules=["0"])
model = peft.get_peft_model(nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2)), lora)
try:
    model(x)
    raise SystemExit("no error")
except RuntimeError as error:
    print(f"LoRA: {error}")
base = nn.Sequential(nn.Conv2d(2, 4, 3, dilation=2))
plain = base(x).shape
shape = peft.get_peft_model(base, peft.HRAConfig(r=2, target_modules=["0"]))(x).shape
print(f"HRA: an output of {tuple(shape[2:])}, where the base's is {tuple(plain[2:])}")
assert shape != plain

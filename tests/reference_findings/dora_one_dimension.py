"""PEFT's DoRA answers x of one dimension with two: ``(magnitude / weight_norm).view(1, -1)`` broadcasts a row in."""

import peft
import torch
from torch import nn

model = nn.Sequential(nn.Linear(3, 2))
tuned = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["0"], use_dora=True))
lora = peft.get_peft_model(nn.Sequential(nn.Linear(3, 2)), peft.LoraConfig(r=1, target_modules=["0"]))

x = torch.randn(3)
print("LoRA:", tuple(lora(x).shape), "DoRA:", tuple(tuned(x).shape))
assert lora(x).shape == (2,)
assert tuned(x).shape == (1, 2)

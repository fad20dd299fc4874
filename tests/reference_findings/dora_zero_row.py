"""A row of zeros in the base weight (a pruned output) is NaN in PEFT's DoRA: m and the norm are both zero."""

import peft
import torch
from torch import nn

base = nn.Linear(4, 3)
with torch.no_grad():
    base.weight[1] = 0
model = peft.get_peft_model(nn.Sequential(base), peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
y = model(torch.randn(2, 4))
merged = model.merge_and_unload()[0].weight
print(y.detach(), merged.detach(), sep="\n")
assert bool(torch.isnan(y[:, 1]).all())
assert bool(torch.isfinite(y[:, [0, 2]]).all())
assert bool(torch.isnan(merged[1]).all())

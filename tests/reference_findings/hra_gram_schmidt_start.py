"""PEFT's HRA with ``apply_GS`` starts from equal pairs of columns, of which Gram-Schmidt leaves 0 / 0 or noise."""

import peft
import torch
from torch import nn

finite, off = 0, 0.0
for seed in range(200):
    torch.manual_seed(seed)
    base = nn.Linear(8, 6, bias=False)
    config = peft.HRAConfig(r=4, apply_GS=True, target_modules=["0"])
    x = torch.eye(8)
    y = peft.get_peft_model(nn.Sequential(base), config)(x).detach()
    if bool(torch.isfinite(y).all()):
        finite += 1
        before = base(x).detach()
        off = max(off, float((y - before).norm() / before.norm()))

print(
    f"of 200 seeds {200 - finite} start at NaN; the furthest of the others is {off:.2f} off the base's output"
)
assert 50 < 200 - finite < 150
assert off > 1

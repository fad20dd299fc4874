"""Adding a second PiSSA adapter changes what the first one computes."""

import peft
import torch
from torch import nn

config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"], init_lora_weights="pissa")
model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
x = torch.eye(4)
with torch.no_grad():
    before = model(x)
    model.add_adapter("b", config)  # not active
    after = model(x)
print(f"relative change of the first adapter's output: {float((after - before).norm() / before.norm()):.2f}")
assert not torch.allclose(after, before, rtol=0.1)

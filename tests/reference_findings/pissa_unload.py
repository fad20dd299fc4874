"""After PiSSA, ``unload()`` returns the residual weight, not the base's; ``disable_adapter()`` computes with it."""

import peft
import torch
from torch import nn

base = nn.Linear(4, 3, bias=False)
before = base.weight.detach().clone()
config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"], init_lora_weights="pissa")
model = peft.get_peft_model(nn.Sequential(base), config)

x = torch.eye(4)
with model.disable_adapter(), torch.no_grad():
    disabled = model(x).mT
after = model.unload()[0].weight.detach()
away = float((after - before).norm() / before.norm())
print(f"relative distance of the unloaded weight from the base's: {away:.2f}")
assert away > 0.3
assert torch.allclose(disabled, after)

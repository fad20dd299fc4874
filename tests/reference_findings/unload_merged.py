"""``unload()`` after ``merge_adapter()`` hands back the merged weight, not the base's."""

import peft
import torch
from torch import nn

base = nn.Linear(4, 3)
before = base.weight.detach().clone()
model = peft.get_peft_model(
    nn.Sequential(base), peft.LoraConfig(r=1, target_modules=["0"], init_lora_weights=False)
)
model.merge_adapter()
after = model.unload()[0].weight.detach()
print(
    f"relative distance of the unloaded weight from the base's: {float((after - before).norm() / before.norm()):.2f}"
)
assert not torch.allclose(after, before)

"""A DoRA or DeLoRA adapter that is added while another is merged takes its norms from the merged weight."""

import warnings

import peft
import torch
from torch import nn

warnings.simplefilter("ignore")
base = nn.Linear(4, 3)
dora = peft.LoraConfig(r=1, target_modules=["0"], use_dora=True)
model = peft.get_peft_model(nn.Sequential(base), dora)
x = torch.eye(4)
with torch.no_grad():
    plain = model(x)
    model.base_model.model[0].lora_magnitude_vector["default"].weight.mul_(3)
    model.merge_adapter()
    model.add_adapter("b", dora)
    model.unmerge_adapter()
    model.set_adapter("b")
    fresh = model(x)
print(f"output of the untrained second adapter over the base's: {float(fresh.norm() / plain.norm()):.2f}")
assert not torch.allclose(fresh, plain, rtol=0.1)

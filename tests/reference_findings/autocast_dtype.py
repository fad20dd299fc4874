"""Under autocast PEFT's HRA and DeLoRA answer in float32, its LoRA and a plain layer in bfloat16."""

import peft
import torch
from torch import nn

configs = {
    "LoRA": peft.LoraConfig(r=2, target_modules=["0"]),
    "IA3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
    "HRA": peft.HRAConfig(r=2, target_modules=["0"]),
    "DeLoRA": peft.DeloraConfig(r=2, target_modules=["0"]),
}
with torch.autocast("cpu", dtype=torch.bfloat16):
    found = {"plain": nn.Linear(4, 3)(torch.randn(2, 4)).dtype}
    for name, config in configs.items():
        found[name] = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)(torch.randn(2, 4)).dtype

print(found)
assert {n for n, dtype in found.items() if dtype == torch.float32} == {"HRA", "DeLoRA"}

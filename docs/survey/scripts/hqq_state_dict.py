# /// script
# dependencies = ["hqq==0.2.8.post1", "torch==2.13.0", "numpy"]
# ///
import torch
from hqq.core.peft import HQQLinearLoRA
from torch import nn

base = nn.Linear(4, 3)
base.compute_dtype = torch.float32  # what an HQQLinear has
model = nn.Sequential(HQQLinearLoRA(base, {"r": 2, "lora_alpha": 4, "dropout": 0.0}))
try:
    model.state_dict()
except TypeError as error:
    print("expected a state dict, got TypeError:", error)

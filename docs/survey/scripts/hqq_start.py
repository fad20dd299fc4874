# /// script
# dependencies = ["hqq==0.2.8.post1", "torch==2.13.0", "numpy"]
# ///
import torch
from hqq.core.peft import HQQLinearLoRA
from torch import nn

base = nn.Linear(1024, 1024)
base.compute_dtype = torch.float32  # what an HQQLinear has
layer = HQQLinearLoRA(base, {"r": 4, "lora_alpha": 4, "dropout": 0.0})
print("expected entries up to", 1024**-0.5, "got", layer.lora_A.abs().max().item())

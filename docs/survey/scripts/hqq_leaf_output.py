# /// script
# dependencies = ["hqq==0.2.8.post1", "torch==2.13.0", "numpy"]
# ///
import torch
from hqq.core.peft import HQQLinearLoRA
from torch import nn

base = nn.Linear(4, 3).requires_grad_(False)
base.compute_dtype = torch.float32  # what an HQQLinear has
base.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
layer = HQQLinearLoRA(base, {"r": 2, "lora_alpha": 2, "dropout": 0.0})
try:
    found = f"an output of shape {tuple(layer(torch.randn(5, 4)).shape)}"
except RuntimeError as error:
    found = f"RuntimeError: {error}"
print("expected an output of shape (5, 3), got", found)

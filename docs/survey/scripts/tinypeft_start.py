# /// script
# requires-python = ">=3.11"
# dependencies = ["tinypeft==1.0.0", "torch==2.13.0", "numpy"]
# ///
"""inject_lora changes what the model computes before anything is trained: B is random."""

import torch
from tinypeft.lora import inject_lora

torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(64, 3)), torch.ones(1, 64)
before = model(x)[0, 0].item()
inject_lora(model, r=8, alpha=16, target_modules=["0"])
print(f"expected {before:.6f}, got {model(x)[0, 0].item():.6f}")

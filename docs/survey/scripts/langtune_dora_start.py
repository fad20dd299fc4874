# /// script
# dependencies = ["langtune==0.1.48", "torch==2.13.0"]
# ///
import torch
from langtune.fast_lora import FastLoRAConfig, apply_fast_lora
from torch import nn

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(1, 4)
base = model(x)
apply_fast_lora(model, FastLoRAConfig(r=2, use_dora=True, target_modules=["0"]), verbose=False)
print("expected", base.tolist(), "got", model(x).tolist(), "of norm", model(x).norm().item())

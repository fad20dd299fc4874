# /// script
# dependencies = ["bidora==0.1.2", "torch==2.13.0"]
# ///
import torch
from bidora.layers import replace_linear_with_bidora
from torch import nn

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(1, 4)
base = model(x)
replace_linear_with_bidora(model, rank=2, target_modules=["0"])
print("expected", base.tolist(), "got", model(x).tolist())

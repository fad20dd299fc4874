# /// script
# dependencies = ["lora-pytorch==0.2.0", "torch==2.13.0", "numpy"]
# ///
import torch
from lora_pytorch import LoRA
from torch import nn

torch.manual_seed(0)
base = nn.Linear(3, 2, bias=False)
x = torch.randn(4, 3, requires_grad=True)
LoRA.from_module(base, rank=1)(
    x
).sum().backward()  # the update is zero at the start: dL/dx is that of the base
print("expected", base.weight.sum(0).tolist(), "got", x.grad[0].tolist())

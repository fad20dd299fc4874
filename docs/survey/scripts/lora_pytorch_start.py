# /// script
# dependencies = ["lora-pytorch==0.2.0", "torch==2.13.0", "numpy"]
# ///
from lora_pytorch import LoRA
from torch import nn

for rank in (4, 64):
    factor = LoRA.from_module(nn.Linear(1024, 1024), rank=rank).lora_module.in_proj
    print("rank", rank, "expected entries up to", 1024**-0.5, "got", factor.abs().max().item())

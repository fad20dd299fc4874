# /// script
# dependencies = ["lora-pytorch==0.2.0", "torch==2.13.0", "numpy"]
# ///
"""merge_lora(inplace=True) of a head that is tied to an embedding adds both updates to the one weight."""

import torch
from lora_pytorch import LoRA
from torch import nn

torch.manual_seed(0)
embedding, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
head.weight = embedding.weight
lora = LoRA.from_module(nn.Sequential(embedding, head), rank=2)
for factor in lora.parameters():
    nn.init.normal_(factor)
x = torch.tensor([1])
before = lora(x)[0, 0].item()
print(f"expected {before:.4f}, got {lora.merge_lora(inplace=True)(x)[0, 0].item():.4f}")

# /// script
# dependencies = ["lora-pytorch==0.2.0", "torch==2.13.0", "numpy"]
# ///
"""An embedding that scales its output, as Gemma's and BART's do: merged, the model is another one."""

import torch
from lora_pytorch import LoRA
from torch import nn


class Scaled(nn.Embedding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8.0 * super().forward(x)


torch.manual_seed(0)
base, x = Scaled(6, 64), torch.tensor([1])
lora = LoRA.from_module(base, rank=2)
print(f"untrained and merged: expected {base(x)[0, 0]:.4f}, got {lora.merge_lora()(x)[0, 0]:.4f}")
nn.init.normal_(lora.lora_module.out_proj)
merged = 8.0 * (base.weight + lora.lora_module.weight)[1, 0]
print(f"with an update of the table: expected {merged:.4f}, got {lora(x)[0, 0]:.4f}")

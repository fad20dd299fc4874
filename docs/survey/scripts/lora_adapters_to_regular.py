# /// script
# requires-python = ">=3.11"
# dependencies = ["lora-adapters==0.1.4", "torch==2.13.0", "numpy"]
# ///
"""to_regular() of a layer changes the layer: both have one weight, into which the update is added."""

import torch
from lora_adapters import LoraLinear

torch.manual_seed(0)
layer = LoraLinear(torch.nn.Linear(4, 3), rank=2, lora_alpha=4)
torch.nn.init.normal_(layer.lora_B)  # what training does
x = torch.ones(1, 4)
before = layer(x)[0, 0].item()
first = layer.to_regular()(x)[0, 0].item()
print(f"the regular layer computes {first:.4f}, a second one {layer.to_regular()(x)[0, 0].item():.4f}")
print(f"expected {before:.4f}, got {layer(x)[0, 0].item():.4f}")

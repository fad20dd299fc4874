# /// script
# requires-python = ">=3.11"
# dependencies = ["lora-adapters==0.1.4", "torch==2.13.0", "numpy"]
# ///
"""A layer that a model uses under two names becomes two layers, with a weight and an adapter each."""

import torch
from lora_adapters import LoraLinear, apply_adapter

shared = torch.nn.Linear(4, 4)
model = apply_adapter(torch.nn.ModuleDict({"encoder": shared, "decoder": shared}), LoraLinear, rank=2)
layers = {id(m) for m in model.modules() if getattr(m, "is_lora", False)}
print(f"expected 1 adapted layer, got {len(layers)}")

# /// script
# requires-python = ">=3.11"
# dependencies = ["lora-adapters==0.1.4", "torch==2.13.0", "numpy"]
# ///
"""A pattern that names no layer leaves a model that trains nothing, and nobody says so."""

import torch
from lora_adapters import LoraLinear, apply_adapter, mark_only_lora_as_trainable

model = torch.nn.Sequential(torch.nn.Linear(4, 3))
model = mark_only_lora_as_trainable(apply_adapter(model, LoraLinear, rank=2, regex_pattern="q_porj"))
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"expected an exception or a warning, got a model with {trained} trainable parameters")

# /// script
# requires-python = ">=3.11"
# dependencies = ["tinypeft==1.0.0", "torch==2.13.0", "numpy"]
# ///
"""Targets that name no layer leave a model that trains nothing, and nobody says so."""

import torch
from tinypeft.lora import inject_lora

model, _ = inject_lora(torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 3)}), target_modules=["q_porj"])
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"expected an exception or a warning, got a model with {trained} trainable parameters")

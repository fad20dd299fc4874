# /// script
# requires-python = ">=3.11"
# dependencies = ["peftml==2.0.0", "torch==2.13.0", "numpy"]
# ///
"""Targets that name no layer leave a model that trains nothing; an INFO line counts 0 layers."""

import torch
from peftml.core.config import LoRAConfig
from peftml.lora import QLoRAOrchestrator

model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 3)})
QLoRAOrchestrator(model, LoRAConfig(r=2, target_modules=["q_porj"])).prepare()
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"expected an exception or a warning, got a model with {trained} trainable parameters")

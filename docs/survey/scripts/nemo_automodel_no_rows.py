# /// script
# requires-python = ">=3.11"
# dependencies = ["nemo-automodel==0.7.0", "torch==2.13.0", "numpy"]
# ///
"""A LoRA layer does not answer an x without rows, which the layer that it adapts answers."""

import torch
from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules

model, x = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 3)}), torch.zeros(2, 0, 4)
before = tuple(model.layer(x).shape)
apply_lora_to_linear_modules(model, PeftConfig(target_modules=["layer"]))
try:
    print(f"expected {before}, got {tuple(model.layer(x).shape)}")
except RuntimeError as error:
    print(f"expected {before}, got RuntimeError: {error}")

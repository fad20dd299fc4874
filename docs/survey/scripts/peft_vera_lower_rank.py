# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""A second VeRA adapter of a lower rank is accepted and fails at its first call; a higher one is refused."""

import peft
import torch
from torch import nn

model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), peft.VeraConfig(r=4, target_modules=["0"]))
try:
    model.add_adapter("higher", peft.VeraConfig(r=8, target_modules=["0"]))
except ValueError as error:
    print(f"rank 8 beside rank 4: {error}")
model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), peft.VeraConfig(r=4, target_modules=["0"]))
model.add_adapter("lower", peft.VeraConfig(r=2, target_modules=["0"]))
model.set_adapter("lower")
try:
    print("rank 2 beside rank 4:", model(torch.ones(3, 6)).shape)
except RuntimeError as error:
    print(f"rank 2 beside rank 4: expected an output or a refusal in add_adapter, got {error}")

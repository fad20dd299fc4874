"""A second VeRA adapter of a lower rank is taken beside the first one, and fails at its first call."""

import peft
import torch
from torch import nn

model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), peft.VeraConfig(r=4, target_modules=["0"]))
model.add_adapter("second", peft.VeraConfig(r=2, target_modules=["0"]))
model.set_adapter("second")
try:
    model(torch.randn(3, 6))
    raise SystemExit("no error")
except RuntimeError as error:
    print(f"rank 2 beside rank 4: {error}")
try:
    model.add_adapter("third", peft.VeraConfig(r=8, target_modules=["0"]))
    raise SystemExit("no error")
except ValueError as error:
    print(f"rank 8 beside rank 4: {error}")

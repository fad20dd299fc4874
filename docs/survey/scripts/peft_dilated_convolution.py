# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""LoRA on a dilated convolution: the adapter's own convolution is not dilated, and the call raises."""

import peft
import torch
from torch import nn

base = nn.Sequential(nn.Conv2d(2, 4, 3, padding=2, dilation=2))
model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]))
try:
    print("an output of shape", tuple(model(torch.ones(1, 2, 8, 8)).shape))
except RuntimeError as error:
    print("expected an output of shape (1, 4, 8, 8), got an exception:", error)

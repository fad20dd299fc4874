# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""HRA on a convolution that is not the same in both directions: the first number is taken for both."""

import peft
import torch
from torch import nn

x, config = torch.randn(1, 2, 6, 6), peft.HRAConfig(r=2, target_modules=["0"])
layer = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(0, 1))
wanted = tuple(layer(x).shape)
found = tuple(peft.get_peft_model(nn.Sequential(layer), config)(x).shape)
print(f"expected an output of shape {wanted}, got {found}")
try:
    peft.get_peft_model(nn.Sequential(nn.Conv2d(2, 4, (2, 3))), config)(x)
except RuntimeError as error:
    print(f"expected a kernel of (2, 3) to work, got RuntimeError: {error}")

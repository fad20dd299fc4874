"""A convolution that is not the same in both directions: HRA takes the first number of each for both."""

import peft
import torch
from torch import nn

x, config = torch.randn(1, 2, 6, 6), peft.HRAConfig(r=2, target_modules=["0"])
model = peft.get_peft_model(nn.Sequential(nn.Conv2d(2, 4, (2, 3))), config)
try:
    model(x)
except RuntimeError as error:
    print(f"kernel (2, 3): {error}")
else:
    raise AssertionError("a kernel that is no square runs now")
layer = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(0, 1))
wanted = tuple(layer(x).shape)
found = tuple(peft.get_peft_model(nn.Sequential(layer), config)(x).shape)
print(f"stride (1, 2), padding (0, 1): expected an output of shape {wanted}, got {found}")
assert found != wanted

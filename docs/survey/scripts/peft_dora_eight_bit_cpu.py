# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "bitsandbytes==0.50.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""DoRA over bitsandbytes' eight-bit layer on the CPU: the first call answers, the second raises."""

import peft
import torch
from bitsandbytes import nn as bnb
from torch import nn


class Model(nn.Module):
    is_loaded_in_8bit = True  # as transformers marks a model that it has quantised

    def __init__(self) -> None:
        super().__init__()
        self.layer = bnb.Linear8bitLt(64, 32, has_fp16_weights=False)
        self.layer.load_state_dict(nn.Linear(64, 32).state_dict())
        self.layer = self.layer.to("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


x = torch.ones(1, 64)
for use_dora in (False, True):
    model = peft.get_peft_model(Model(), peft.LoraConfig(use_dora=use_dora, target_modules=["layer"]))
    found = "an output"
    model(x)
    try:
        model(x)
    except AttributeError as error:
        found = f"AttributeError: {error}"
    print(f"second call, use_dora={use_dora}: expected an output, got {found}")

"""DoRA over bitsandbytes' eight-bit layer on the CPU: the first call answers, the second raises."""

import peft
import torch
from bitsandbytes import nn as bnb
from torch import nn


class Model(nn.Module):
    """One eight-bit layer, marked as transformers marks a model that it has quantised."""

    is_loaded_in_8bit = True

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
    model(x)
    try:
        model(x)
        print(f"use_dora={use_dora}: both calls answer")
        assert not use_dora
    except AttributeError as error:
        print(f"use_dora={use_dora}: {error}")
        assert use_dora

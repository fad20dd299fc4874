# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""A layer that a model holds under two names: PiSSA wraps one of them, the other computes with the residual."""

import peft
import torch
from torch import nn


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first


config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["first", "second"], init_lora_weights="pissa")
model, x = Twice(), torch.eye(4)
before = model.second(x).detach()
peft.get_peft_model(model, config)
off = (model.second(x) - before).abs().max()
print(f"expected second(x) as before training, got one that is up to {off:.2g} away")

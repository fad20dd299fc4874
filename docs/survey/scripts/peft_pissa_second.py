# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""Adding a second PiSSA adapter, which is not active, changes what the first one computes."""

import peft
import torch
from torch import nn

config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"], init_lora_weights="pissa")
model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
x = torch.eye(4)
before = model(x)
model.add_adapter("b", config)
print(f"expected the same output as before, got one that is up to {(model(x) - before).abs().max():.2g} away")

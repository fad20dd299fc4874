# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""After PiSSA, unload() hands back the residual weight, and disable_adapter() computes with it."""

import peft
from torch import nn

base = nn.Linear(4, 3)
before = base.weight.detach().clone()
config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"], init_lora_weights="pissa")
model = peft.get_peft_model(nn.Sequential(base), config)
after = model.unload()[0].weight
print(f"expected the base's weight, got one that is up to {(after - before).abs().max():.2g} away")

# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""unload() of a merged model hands back the merged weight as the base model."""

import peft
from torch import nn

base = nn.Linear(4, 3)
before = base.weight.detach().clone()
config = peft.LoraConfig(r=1, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(nn.Sequential(base), config)
model.merge_adapter()
after = model.unload()[0].weight
print(f"expected the base's weight, got one that is up to {(after - before).abs().max():.2g} away")

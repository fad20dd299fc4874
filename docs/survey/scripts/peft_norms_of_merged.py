# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""A DeLoRA adapter that is added while another is merged takes its norms from the merged weight."""

import peft
from torch import nn

base, config = nn.Linear(4, 3), peft.DeloraConfig(r=2, target_modules=["0"], init_weights=False)
right = base.weight.detach().norm(dim=0)
model = peft.get_peft_model(nn.Sequential(base), config)
model.merge_adapter()
model.add_adapter("b", config)
model.unmerge_adapter()
found = model.base_model.model[0].delora_w_norm["b"]
print(f"expected the norms of the base weight, {right.tolist()}, got {found.tolist()}")

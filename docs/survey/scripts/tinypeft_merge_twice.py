# /// script
# requires-python = ">=3.11"
# dependencies = ["tinypeft==1.0.0", "torch==2.13.0", "numpy"]
# ///
"""merge_lora_weights of a model that is merged adds the update again."""

import torch
from tinypeft.lora import inject_lora, merge_lora_weights

torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.ones(1, 4)
_, (layer,) = inject_lora(model, r=2, alpha=4, target_modules=["0"])
torch.nn.init.normal_(layer.B)  # what training does
once = merge_lora_weights(model)(x)[0, 0].item()
print(f"expected {once:.6f}, got {merge_lora_weights(model)(x)[0, 0].item():.6f}")

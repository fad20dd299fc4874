# /// script
# requires-python = ">=3.11"
# dependencies = ["lora-adapters==0.1.4", "torch==2.13.0", "numpy"]
# ///
"""What lora_state_dict gives of a trained model, loaded into a fresh one as the README has it."""

import copy

import torch
from lora_adapters import LoraLinear, apply_adapter, lora_state_dict, mark_only_lora_as_trainable

torch.manual_seed(0)
base = torch.nn.Sequential(torch.nn.Linear(4, 3))
model = mark_only_lora_as_trainable(apply_adapter(copy.deepcopy(base), LoraLinear, rank=2, lora_alpha=4))
torch.nn.init.normal_(model[0].lora_B)  # what training does
updates = lora_state_dict(model)
fresh = apply_adapter(copy.deepcopy(base), LoraLinear, rank=2, lora_alpha=4)
fresh.load_state_dict(updates, strict=False)
x = torch.ones(1, 4)
print("keys:", sorted(updates), "- the base's:", torch.equal(updates["0.weight"], base[0].weight))
print(f"expected {model(x)[0, 0].item():.4f}, got {fresh(x)[0, 0].item():.4f}")

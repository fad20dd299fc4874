# /// script
# requires-python = ">=3.11"
# dependencies = ["tinypeft==1.0.0", "torch==2.13.0", "numpy"]
# ///
"""A target also selects layers in whose names it merely occurs."""

import torch
from tinypeft.lora import inject_lora

model = torch.nn.ModuleDict({n: torch.nn.Linear(4, 3) for n in ("q", "seq_head")})
_, layers = inject_lora(model, r=2, alpha=4, target_modules=["q"])
print(f"expected 1 adapted layer, q; got {len(layers)}")

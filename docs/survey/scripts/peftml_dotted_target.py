# /// script
# requires-python = ">=3.11"
# dependencies = ["peftml==2.0.0", "torch==2.13.0", "numpy"]
# ///
"""A target with a dot in it, such as the whole name of a layer, matches no layer."""

import torch
from peftml.core.config import LoRAConfig
from peftml.lora import LoRALinear, QLoRAOrchestrator

for target in ("q_proj", "attn.q_proj"):
    model = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 3)})})
    QLoRAOrchestrator(model, LoRAConfig(r=2, target_modules=[target])).prepare()
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    print(f"target {target}: expected ['attn.q_proj'], got {adapted}")

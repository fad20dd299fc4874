"""Small, hackable adapters for `torch.nn.Linear`: LoRA, PiSSA, DoRA, (IA)³, HRA, DeLoRA.

import lora_lite

lora_lite.attach(model, lora_lite.LoRAConfig(rank=8, alpha=16))
optimizer = torch.optim.AdamW(lora_lite.parameters(model), lr=1e-3)
...
lora_lite.save(model, "adapter.safetensors")   # later: lora_lite.load(model, "adapter.safetensors")
lora_lite.detach(model)                        # or merge(model)
"""

from . import variants
from .adapter import adapters, attach, detach, load, merge, parameters, save
from .config import (
    AdapterConfig,
    DeLoRAConfig,
    DoRAConfig,
    HRAConfig,
    IA3Config,
    LoRAConfig,
    PiSSAConfig,
)
from .interchange import load_peft, save_peft
from .variant import VARIANTS, Variant, config_from_dict, register, weight_of

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "AdapterConfig",
    "DeLoRAConfig",
    "DoRAConfig",
    "HRAConfig",
    "IA3Config",
    "LoRAConfig",
    "PiSSAConfig",
    "Variant",
    "adapters",
    "attach",
    "config_from_dict",
    "detach",
    "load",
    "load_peft",
    "merge",
    "parameters",
    "register",
    "save",
    "save_peft",
    "variants",
    "weight_of",
]

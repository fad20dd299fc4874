"""Small, hackable adapters for `torch.nn.Linear`: LoRA, PiSSA, DoRA, (IA)³, HRA, DeLoRA.

import lora_lite

lora_lite.attach(model, lora_lite.LoRAConfig(rank=8, alpha=16))
optimizer = torch.optim.AdamW(lora_lite.parameters(model), lr=1e-3)
...
lora_lite.save(model, "adapter.safetensors")   # later: lora_lite.load(model, "adapter.safetensors")
lora_lite.detach(model)                        # or merge(model)
"""

from . import variants
from .adapter import (
    active,
    adapters,
    attach,
    delete,
    detach,
    disabled,
    load,
    names,
    parameters,
    save,
    set_adapters,
)
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
from .kinds import Kind, kind_of
from .merging import merge, merge_in_place, unmerge
from .quantised import is_quantised
from .switch import DEFAULT
from .variant import VARIANTS, Variant, config_from_dict, register, weight_of

__version__ = "0.1.0"

__all__ = [
    "DEFAULT",
    "VARIANTS",
    "AdapterConfig",
    "DeLoRAConfig",
    "DoRAConfig",
    "HRAConfig",
    "IA3Config",
    "Kind",
    "LoRAConfig",
    "PiSSAConfig",
    "Variant",
    "active",
    "adapters",
    "attach",
    "config_from_dict",
    "delete",
    "detach",
    "disabled",
    "is_quantised",
    "kind_of",
    "load",
    "load_peft",
    "merge",
    "merge_in_place",
    "names",
    "parameters",
    "register",
    "save",
    "save_peft",
    "set_adapters",
    "unmerge",
    "variants",
    "weight_of",
]

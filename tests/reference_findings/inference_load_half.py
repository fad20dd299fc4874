"""Loaded for inference onto a bfloat16 base, IA3, HRA and DeLoRA have trainable parameters; LoRA has none."""

import tempfile

import peft
import torch
from torch import nn

configs = {
    "LoRA": peft.LoraConfig(r=2, target_modules=["0"]),
    "IA3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
    "HRA": peft.HRAConfig(r=2, target_modules=["0"]),
    "DeLoRA": peft.DeloraConfig(r=2, target_modules=["0"]),
}


def trainable(config: peft.PeftConfig, dtype: torch.dtype) -> int:
    with tempfile.TemporaryDirectory() as folder:
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 3, dtype=dtype)), config).save_pretrained(folder)
        model = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(4, 3, dtype=dtype)), folder)
    return sum(p.requires_grad for p in model.parameters())


half = {name: trainable(config, torch.bfloat16) for name, config in configs.items()}
single = {name: trainable(config, torch.float32) for name, config in configs.items()}
print(f"trainable tensors after from_pretrained: bfloat16 {half}, float32 {single}")
assert set(single.values()) == {0}
assert {name for name, count in half.items() if count} == {"IA3", "HRA", "DeLoRA"}

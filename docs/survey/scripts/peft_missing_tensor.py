# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""A checkpoint without lora_B: load_adapter says nothing, and the adapter that was trained is not there."""

import tempfile

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

config = peft.LoraConfig(r=2, target_modules=["0"])
base, x = nn.Linear(4, 3), torch.eye(4)
model = peft.get_peft_model(nn.Sequential(base), config)
model.base_model.model[0].lora_B["default"].weight.data.fill_(1.0)  # trained
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    file = f"{folder}/adapter_model.safetensors"
    save_file({k: t for k, t in load_file(file).items() if "lora_B" not in k}, file)
    said = model.load_adapter(folder, "again", is_trainable=True)
model.set_adapter("again")
off = (model(x) - base(x)).abs().max()
print(
    f"expected an exception, got {len(said.missing_keys)} missing key and an output {off} away from the base's"
)

# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""A PiSSA checkpoint loaded on another base: that one is factorised anew, and the saved A and B get its residual."""

import tempfile

import peft
import torch
from torch import nn

config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="pissa")
base, other, x = nn.Linear(6, 5), nn.Linear(6, 5), torch.eye(6)
model = peft.get_peft_model(nn.Sequential(base), config)  # untrained: it changes nothing
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    before = other(x).detach()
    loaded = peft.PeftModel.from_pretrained(nn.Sequential(other), folder)
off = (loaded(x) - before).abs().max()
print(
    f"expected the other base's own output from an untrained adapter, or an exception, got one {off:.2g} away"
)

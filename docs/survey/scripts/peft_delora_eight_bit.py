# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "bitsandbytes==0.50.2", "transformers"]
# ///
"""DeLoRA takes a linear layer that bitsandbytes has quantised to 8 bit, and fails while it is made."""

import bitsandbytes as bnb
import torch
from peft import DeloraConfig, get_peft_model

layer = bnb.nn.Linear8bitLt(4, 4, has_fp16_weights=False)
layer.load_state_dict(torch.nn.Linear(4, 4).state_dict())
model = torch.nn.Sequential(layer.to("cpu"))
try:
    get_peft_model(model, DeloraConfig(target_modules=["0"]))
except Exception as error:
    print(f"expected a refusal in words or an adapter, got {type(error).__name__}: {error}")

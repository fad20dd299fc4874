# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "bitsandbytes==0.50.2", "torchao==0.18.0", "torch==2.13.0", "transformers"]
# ///
"""HRA over a quantised layer: torchao's raises when called, of bitsandbytes' the integers are multiplied."""

import peft
import torch
from bitsandbytes import nn as bnb
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

torch.manual_seed(0)
x, config = torch.ones(1, 64), peft.HRAConfig(r=2, target_modules=["0"])  # the identity at its start
int8 = nn.Sequential(nn.Linear(64, 32))
quantize_(int8, Int8WeightOnlyConfig())
try:
    print("torchao, int8:", peft.get_peft_model(int8, config)(x)[0, 0].item())
except NotImplementedError as error:
    print(
        f"torchao, int8: expected an output, or a refusal when it is attached, got {str(error).split(',')[0]}"
    )
layer = bnb.Linear8bitLt(64, 32, has_fp16_weights=False)
layer.load_state_dict(nn.Linear(64, 32).state_dict())
base = nn.Sequential(layer).to("cpu")
plain = base(x)[0, 0].item()
adapted = peft.get_peft_model(base, config)(x)[0, 0].item()
print(f"bitsandbytes, 8 bit, untrained: expected {plain:.4f}, got {adapted:.4f}")

"""HRA over a quantised layer: the integers themselves are multiplied, or the call raises; merged, nothing is left."""

import peft
import torch
from bitsandbytes import nn as bnb
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

x = torch.ones(1, 64)
config = peft.HRAConfig(r=2, target_modules=["0"])  # at its start, where the two reflections cancel

eight = bnb.Linear8bitLt(64, 32, has_fp16_weights=False)
eight.load_state_dict(nn.Linear(64, 32).state_dict())
base = nn.Sequential(eight).to("cpu")
plain = base(x)
model = peft.get_peft_model(base, config)
adapted = model(x)
times = float((adapted.norm() / plain.norm()).detach())
print(f"bitsandbytes, 8 bit: at the start the output is {times:.0f} times as large as the base's")
assert times > 100

nn.init.normal_(base[0].hra_u["default"])
trained = model(x)
merged = model.merge_and_unload()(x)
print(f"merged: the base's output {torch.equal(merged, plain)}, the adapted {torch.equal(merged, trained)}")
assert torch.equal(merged, plain)

int8 = nn.Sequential(nn.Linear(64, 32))
quantize_(int8, Int8WeightOnlyConfig())
try:
    peft.get_peft_model(int8, config)(x)
    raise SystemExit("no error")
except NotImplementedError as error:
    print(f"torchao, int8: {str(error).split(',')[0]}")

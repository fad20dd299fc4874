"""An adapter that is attached to a model in evaluation mode is in training mode: its dropout is active."""

import peft
import torch
from torch import nn

base = nn.Sequential(nn.Linear(4, 3)).eval()
config = peft.LoraConfig(r=2, target_modules=["0"], lora_dropout=0.5, init_lora_weights=False)
model = peft.inject_adapter_in_model(config, base)
x = torch.randn(5, 4)
print(f"model.training: {model.training}; the tuner layer's: {model[0].training}")
assert not model.training
assert not torch.equal(model(x), model(x))
assert torch.equal(model.eval()(x), model(x))

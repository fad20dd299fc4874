"""Two active DoRA adapters with dropout: in evaluation the second scales the first one's update too."""

import peft
import torch
from torch import nn

torch.manual_seed(0)
# Dropout so rare that it drops nothing here, but the training path is taken.
config = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True, lora_dropout=1e-9)
model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
model.add_adapter("second", config)
model.base_model.set_adapter(["default", "second"])
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.normal_()

x = torch.randn(5, 4)
trained = model.train()(x).detach()
evaluated = model.eval()(x).detach()
off = float((trained - evaluated).norm() / trained.norm())
print(f"evaluation is {off:.2f} off training; with one of the two:")
for name in ("default", "second"):
    model.set_adapter(name)
    alone = float((model.train()(x) - model.eval()(x)).detach().norm())
    print(f"  {name}: {alone:.1g}")
    assert alone < 1e-4
assert off > 0.1

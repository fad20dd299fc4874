"""A PiSSA checkpoint loaded on another base factorises that one anew: the saved A and B get the wrong residual."""

import tempfile

import peft
import torch
from torch import nn


def base(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5, bias=False))


config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="pissa")
model = peft.get_peft_model(base(0), config)
x = torch.randn(8, 6)
y = model(x).detach()

with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    same = peft.PeftModel.from_pretrained(base(0), folder)(x)
    residual = base(0)
    residual[0].weight.data = model.base_model.model[0].base_layer.weight.detach().clone()
    twice = peft.PeftModel.from_pretrained(residual, folder)(x)
    other = peft.PeftModel.from_pretrained(base(1), folder)(x)

for name, found in (("its own base", same), ("its residual", twice), ("another base", other)):
    print(f"on {name}: {float((found - y).norm() / y.norm()):.2g} off")
assert torch.allclose(same, y, atol=1e-6)
assert float((twice - y).norm() / y.norm()) > 0.1
assert float((other - y).norm() / y.norm()) > 0.1

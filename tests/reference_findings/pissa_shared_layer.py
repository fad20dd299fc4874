"""A layer that a model holds under two names is wrapped under one: with PiSSA the other name is left the residual."""

import peft
import torch
from torch import nn


class Twice(nn.Module):
    """One linear layer, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = self.first


def off(init: bool | str) -> float:
    torch.manual_seed(0)
    model = Twice()
    before = model.first.weight.detach().clone()
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["first", "second"], init_lora_weights=init)
    peft.get_peft_model(model, config)
    x = torch.eye(4)
    return max(
        float((layer(x).detach().mT - before).norm() / before.norm()) for layer in (model.first, model.second)
    )


print(f"before any training, furthest from the base: LoRA {off(True):.2g}, PiSSA {off('pissa'):.2g}")
assert off(True) < 1e-6
assert off("pissa") > 0.3

"""Two active DoRA adapters compute one function in evaluation and another in training, however small the dropout."""

import peft
import torch
from torch import nn

torch.manual_seed(0)
config = peft.LoraConfig(r=1, target_modules=["0"], use_dora=True, lora_dropout=1e-9, init_lora_weights=False)
model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
model.add_adapter("b", config)
for name in ("default", "b"):
    model.base_model.model[0].lora_magnitude_vector[name].weight.data.mul_(2)
model.base_model.set_adapter(["default", "b"])
x = torch.eye(4)
with torch.no_grad():
    training, evaluation = model.train()(x), model.eval()(x)
print(
    f"relative distance of the two outputs: {float((training - evaluation).norm() / evaluation.norm()):.2f}"
)
assert not torch.allclose(training, evaluation, rtol=0.1)

"""DoRA on a convolution with groups: the norm is taken of another update than the one that acts."""

import peft
import torch
from torch import nn

torch.manual_seed(0)
base, x = nn.Conv2d(4, 6, 2, groups=2, bias=False), torch.randn(1, 4, 5, 5)
W = torch.zeros(6, 4, 2, 2)  # the kernel with zeros where a group does not look
for o in range(6):
    W[o, 2 * (o // 3) : 2 * (o // 3) + 2] = base.weight[o].detach()
model = peft.get_peft_model(nn.Sequential(base), peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
layer = model.base_model.model[0]
A, B, s = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
with torch.no_grad():
    B.weight.normal_()
    update = torch.stack([B.weight[o, 0, 0, 0] * A.weight[o // 3] for o in range(6)])
    assert torch.allclose(nn.functional.conv2d(x, update), B(A(x)), atol=1e-5)
    norm = (W + s * update).flatten(1).norm(dim=1)
    right = layer.lora_magnitude_vector["default"].weight.flatten() / norm
    wanted = right[None, :, None, None] * nn.functional.conv2d(x, W + s * update)
    gap = float((model(x) - wanted).norm() / wanted.norm())
print(f"the output is off by {100 * gap:.0f} %")
assert gap > 0.01

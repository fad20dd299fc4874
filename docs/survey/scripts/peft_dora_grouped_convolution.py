# /// script
# requires-python = ">=3.11"
# dependencies = ["peft==0.21.2", "torch==2.13.0", "transformers>=5,<6"]
# ///
"""DoRA on a convolution with groups: the norm is taken of another update than the one that acts."""

import peft
import torch
from torch import nn

torch.manual_seed(0)
base, x = nn.Conv2d(4, 6, 2, groups=2, bias=False), torch.randn(1, 4, 5, 5)
full = torch.zeros(6, 4, 2, 2)  # the kernel, with zeros where a group does not look
for o in range(6):
    full[o, 2 * (o // 3) : 2 * (o // 3) + 2] = base.weight[o].detach()
model = peft.get_peft_model(nn.Sequential(base), peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
layer = model.base_model.model[0]
A, B, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
with torch.no_grad():
    B.weight.normal_()
    update = torch.stack([B.weight[o, 0, 0, 0] * A.weight[o // 3] for o in range(6)])
    print(
        "the update that acts is this one:",
        torch.allclose(nn.functional.conv2d(x, update), B(A(x)), atol=1e-5),
    )
    direction = full + scale * update
    ratio = layer.lora_magnitude_vector["default"].weight.flatten() / direction.flatten(1).norm(dim=1)
    expected = ratio[None, :, None, None] * nn.functional.conv2d(x, direction)
    got = model(x)
    gap = 100 * (got - expected).norm() / expected.norm()
print(f"expected {expected[0, 0, 0, 0]:.4f}, got {got[0, 0, 0, 0]:.4f}; the output is off by {gap:.0f} %")

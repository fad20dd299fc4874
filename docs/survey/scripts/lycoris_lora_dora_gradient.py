# /// script
# dependencies = ["lycoris-lora==4.1.3", "torch==2.13.0", "numpy"]
# ///
import torch
from lycoris import create_lycoris
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 2, bias=False))
network = create_lycoris(model, 1.0, linear_dim=1, linear_alpha=1.0, algo="lora", dora_wd=True)
network.apply_to()
model(torch.ones(1, 1)).sum().backward()
lora = network.loras[0]
# dL/dB with the norm a constant (DoRA, section 4.3) is A itself, at the start
print(
    "expected",
    lora.lora_down.weight.flatten().tolist() * 2,
    "got",
    lora.lora_up.weight.grad.flatten().tolist(),
)

# /// script
# dependencies = ["flashdet==1.2.1", "torch==2.13.0", "numpy"]
# ///
import torch
from flashdet.models.lora import DoRALinear

torch.manual_seed(0)
layer = DoRALinear(1, 2, rank=1, alpha=1.0, bias=False)
layer.weight.data.normal_()
layer._init_magnitude_from_weight()
layer(torch.ones(1, 1)).sum().backward()
# dL/dB with the norm a constant (DoRA, section 4.3) is A itself, at the start
print("expected", layer.lora_A.flatten().tolist() * 2, "got", layer.lora_B.grad.flatten().tolist())

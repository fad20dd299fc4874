# /// script
# dependencies = ["mace-torch==0.3.16", "torch==2.13.0"]
# ///
import torch
from mace.modules.lora import LoRADenseLinear
from torch import nn

layer, x = LoRADenseLinear(nn.Linear(4, 3)), torch.ones(1, 4)
with torch.no_grad():
    before = layer(x)
    layer.load_state_dict({name: torch.ones_like(t) for name, t in layer.state_dict().items()})
    after = layer(x)
    expected = layer.base(x) + layer.scaling * layer.lora_B(layer.lora_A(x))
print("expected", expected.tolist(), "got", after.tolist())

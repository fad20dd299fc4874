# /// script
# dependencies = ["torchtune==0.6.1", "torchao==0.9.0", "torch==2.13.0"]
# ///
import torch
from torch import nn
from torchtune.modules.peft import DoRALinear, get_merged_lora_ckpt

model = nn.Sequential(DoRALinear(4, 3, rank=2, alpha=2.0, use_bias=True))
model[0].initialize_dora_magnitude()
model[0].magnitude.data *= 2  # as training might
merged = get_merged_lora_ckpt({n: t.clone() for n, t in model.state_dict().items()}, rank=2, alpha=2.0)
zero = torch.zeros(1, 4)
print("expected", merged["0.bias"].tolist(), "(the merged layer's) got", model(zero)[0].tolist())

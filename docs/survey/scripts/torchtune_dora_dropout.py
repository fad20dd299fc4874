# /// script
# dependencies = ["torchtune==0.6.1", "torchao==0.9.0", "torch==2.13.0"]
# ///
import torch
from torchtune.modules.peft import DoRALinear

torch.manual_seed(0)
layer = DoRALinear(64, 1, rank=2, alpha=2.0, dropout=0.5)
layer.initialize_dora_magnitude()
layer.magnitude.data *= 2  # as training might; B is zero
x = torch.randn(1, 64)
outputs = [layer(x).item() for _ in range(2)]
print("expected two masks to give two outputs, as in PEFT, got", outputs)

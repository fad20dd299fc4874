# /// script
# dependencies = ["lycoris-lora==4.1.3", "torch==2.13.0", "numpy"]
# ///
import torch
from lycoris import create_lycoris
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8))
network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4.0, algo="lora", dropout=0.9)
network.apply_to()
nn.init.normal_(network.loras[0].lora_up.weight)
x = torch.randn(2, 8)
network.train()
same = torch.equal(model(x), model(x))
print("expected two masks to give different outputs, got", "the same" if same else "different", "outputs")

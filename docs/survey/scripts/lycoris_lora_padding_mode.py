# /// script
# dependencies = ["lycoris-lora==4.1.3", "torch==2.13.0", "numpy"]
# ///
import torch
from lycoris import create_lycoris
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
network = create_lycoris(model, 1.0, linear_dim=2, linear_alpha=2.0, algo="lora", conv_dim=2, conv_alpha=2.0)
network.apply_to()
nn.init.normal_(network.loras[0].lora_up.weight)
x = torch.randn(1, 2, 6, 6)
with torch.no_grad():
    adapted = model(x)
    network.restore()
    network.merge_to(1.0)
    gap = adapted - model(x)
print(
    f"expected the merged layer to answer as the adapted one, got up to {float(gap.abs().max()):.2f} beside it"
)
print(f"inside the edges up to {float(gap[..., 1:-1, 1:-1].abs().max()):.0e}")

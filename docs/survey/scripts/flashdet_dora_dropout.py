# /// script
# dependencies = ["flashdet==1.2.1", "torch==2.13.0", "numpy"]
# ///
import torch
from flashdet.models.lora import apply_lora
from torch import nn

torch.manual_seed(0)
model = nn.Module()
model.backbone = nn.Sequential(nn.Linear(64, 3))
x = torch.randn(1, 64)
base = model.backbone(x)
apply_lora(model, rank=2, variant="dora", dropout=0.5, target_modules=["backbone"])
# B is zero: whatever is dropped from the adapter's input, the fresh layer is the base layer.
print("expected", base.tolist(), "got", model.backbone.train()(x).tolist())

# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""DoRA with alpha other than r, and with a bias: the norm leaves the scale out, the bias is multiplied by m / norm."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
)
model = BertModel(config)
adapters.init(model)
model.add_adapter("a", config=adapters.LoRAConfig(r=2, alpha=8, use_dora=True))
model.train_adapter("a")
model.eval()
layer = model.encoder.layer[0].attention.self.query
own, x = layer.loras["a"], torch.randn(1, 3, 8)
torch.nn.init.normal_(own.lora_B)  # what training does
torch.nn.init.normal_(layer.bias)
V = layer.weight + own.scaling * own.lora_B @ own.lora_A
paper = x @ (own.m.weight * V / V.norm(dim=1, keepdim=True)).T + layer.bias
print(f"expected {paper[0, 0, 0].item():.4f}, got {layer(x)[0, 0, 0].item():.4f}")

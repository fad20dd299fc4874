# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""A DoRA layer that is merged computes another function than before."""

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
before = layer(x)[0, 0, 0].item()
model.merge_adapter("a")
print(f"expected {before:.4f}, got {layer(x)[0, 0, 0].item():.4f}")

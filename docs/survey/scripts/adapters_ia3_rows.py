# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""An (IA)3 layer answers rows (n, in) in another shape."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
)
model = BertModel(config)
adapters.init(model)
model.add_adapter("a", config=adapters.IA3Config(attn_matrices=["q"]))
model.train_adapter("a")
model.eval()
layer = model.encoder.layer[0].attention.self.query
own, x = layer.loras["a"], torch.randn(1, 3, 8)
rows = x[0]
print(f"expected {tuple(rows.shape)}, got {tuple(layer(rows).shape)}")

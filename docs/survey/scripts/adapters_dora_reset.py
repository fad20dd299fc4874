# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""reset_adapter of a merged DoRA adapter does not take it out of the weight."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
)
model = BertModel(config)
adapters.init(model)
model.add_adapter("a", config=adapters.LoRAConfig(r=2, alpha=2, use_dora=True))
model.train_adapter("a")
model.eval()
layer = model.encoder.layer[0].attention.self.query
own, x = layer.loras["a"], torch.randn(1, 3, 8)
torch.nn.init.normal_(own.lora_B)  # what training does
before = layer.weight[0, 0].item()
model.merge_adapter("a")
model.reset_adapter()
print(f"expected {before:.4f}, got {layer.weight[0, 0].item():.4f}")

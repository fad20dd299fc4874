# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""delete_adapter of a merged LoRA raises, and leaves it in the weight for good."""

import adapters
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
)
model = BertModel(config)
adapters.init(model)
model.add_adapter("a", config=adapters.LoRAConfig(r=2, alpha=2))
model.set_active_adapters("a")
layer = model.encoder.layer[0].attention.self.query
torch.nn.init.normal_(layer.loras["a"].lora_B)  # what training does
before = layer.weight[0, 0].item()
model.merge_adapter("a")
for call in (lambda: model.delete_adapter("a"), model.reset_adapter):
    try:
        call()
    except KeyError as error:
        print("KeyError:", error)
print(f"expected {before:.4f}, got {layer.weight[0, 0].item():.4f}")

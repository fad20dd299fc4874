# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""train_adapter of a name that is not there raises after it has frozen what was trained."""

import adapters
from transformers import BertConfig, BertModel

config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9
)
model = BertModel(config)
adapters.init(model)
model.add_adapter("a", config=adapters.LoRAConfig(r=2, alpha=2))
model.train_adapter("a")
before = sum(p.numel() for p in model.parameters() if p.requires_grad)
try:
    model.train_adapter("b")
except ValueError as error:
    print(error)
after = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"active: {model.active_adapters}; trained numbers: expected {before}, got {after}")

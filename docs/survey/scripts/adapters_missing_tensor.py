# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""load_adapter takes a file that lacks tensors of the adapter."""

import tempfile
from pathlib import Path

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
layer = model.encoder.layer[0].attention.self.query
torch.nn.init.normal_(layer.loras["a"].lora_B)  # what training does
saved = layer.loras["a"].lora_B.norm().item()
with tempfile.TemporaryDirectory() as folder:
    model.save_adapter(folder, "a")
    file = Path(folder) / "pytorch_adapter.bin"
    kept = {name: tensor for name, tensor in torch.load(file).items() if "lora_B" not in name}
    torch.save(kept, file)
    model.load_adapter(folder, load_as="b")
loaded = layer.loras["b"].lora_B.norm().item()
print(f"expected an exception or a B of norm {saved:.4f}, got a B of norm {loaded:.4f}")

# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""IA3Config's gate of the feed-forward layer in Llama: as long as the intermediate activation in the paper, Eq. (1)."""

import adapters
from transformers import LlamaConfig, LlamaModel

sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
model = LlamaModel(LlamaConfig(num_hidden_layers=1, vocab_size=9, **sizes))
adapters.init(model)
model.add_adapter("a", config=adapters.IA3Config())
((name, gate),) = [(n, p) for n, p in model.named_parameters() if "mlp" in n and "lora" in n]
print(f"expected a gate of 12 entries before down_proj, got {gate.numel()} after it ({name})")

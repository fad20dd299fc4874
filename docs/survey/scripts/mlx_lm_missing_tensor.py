# /// script
# requires-python = ">=3.10"
# dependencies = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]
# ///
"""A checkpoint without lora_b is loaded by mlx-lm without a word: the adapter does nothing."""

import json
import tempfile

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.utils import load_adapters

model, block, x = nn.Module(), nn.Module(), mx.eye(4)
block.proj, model.layers = nn.Linear(4, 3), [block]
before = block.proj(x)
settings = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["proj"]}
with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump({"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": settings}, file)
    mx.save_safetensors(f"{folder}/adapters.safetensors", {"layers.0.proj.lora_a": mx.ones((4, 2))})
    load_adapters(model, folder)
off = mx.abs(model.layers[0].proj(x) - before).max().item()
print(f"expected an exception, got an adapter whose output is the base's, {off} off")

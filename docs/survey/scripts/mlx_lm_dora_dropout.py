# /// script
# requires-python = ">=3.10"
# dependencies = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]
# ///
"""Dropout in DoRALinear leaves x alone in the part that the magnitude scales: only the low-rank product is dropped."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear

mx.random.seed(0)
layer = DoRALinear.from_base(nn.Linear(4, 3, bias=False), r=2, dropout=0.5)
layer.m = 2 * layer.m  # the update is the base's output once more; lora_b is zero
layer.train()
x = mx.ones((1000, 4))
spread = mx.std(layer(x), axis=0).max().item()
print(f"expected outputs that vary with the mask, as in the authors' code, got a spread of {spread:.0e}")

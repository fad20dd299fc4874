# /// script
# requires-python = ">=3.10"
# dependencies = ["mlx[cpu]==0.32.4", "mlx-lm==0.32.2"]
# ///
"""DoRALinear.fuse() gives float32 weights for a float16 layer."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear

linear = nn.Linear(4, 3)
linear.set_dtype(mx.float16)
fused = DoRALinear.from_base(linear, r=2).fuse()
print(f"expected {linear.weight.dtype}, got {fused.weight.dtype}")

# /// script
# requires-python = ">=3.11"
# dependencies = ["keras==3.15.1", "jax==0.10.2"]
# ///
"""The LoRA factors of a float64 layer are float32."""

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"
import keras

layer = keras.layers.Dense(3, dtype="float64")
layer.build((None, 4))
layer.enable_lora(2)
print(f"kernel {layer.kernel.dtype}: expected float64 factors, got {layer.lora_kernel_a.dtype}")

# /// script
# requires-python = ">=3.11"
# dependencies = ["keras==3.15.1", "jax==0.10.2"]
# ///
"""Dense(lora_rank, lora_alpha): the alpha is lost when the layer is built."""

import os

os.environ["KERAS_BACKEND"] = "jax"
import keras

layer = keras.layers.Dense(3, lora_rank=2, lora_alpha=8)
layer.build((None, 4))
print(f"expected lora_alpha 8, got {layer.lora_alpha}")

# /// script
# requires-python = ">=3.11"
# dependencies = ["speechbrain==1.1.2", "torch==2.13.0", "torchaudio", "numpy"]
# ///
"""Target layers that name nothing leave a model that trains nothing, and nobody says so."""

import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA

model = torch.nn.Sequential(torch.nn.Linear(4, 3))
adapted = AdaptedModel(model, LoRA, target_layers=["q_porj"], adapter_kwargs={"rank": 2})
trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
print(f"expected an exception or a warning, got a model with {trained} trainable parameters")

# /// script
# dependencies = ["hqq==0.2.8.post1", "torch==2.13.0", "numpy"]
# ///
from hqq.core.peft import HQQLinearLoRA
from torch import nn

try:
    HQQLinearLoRA(nn.Linear(4, 3), {"r": 2, "lora_alpha": 4, "dropout": 0.0})
except NameError as error:
    print("expected a layer, got NameError:", error)

# /// script
# requires-python = "==3.11.*"
# dependencies = ["opendelta==0.3.2", "transformers==4.30.2", "torch==2.13.0", "numpy<2", "setuptools<81", "requests"]
#
# [tool.uv]
# exclude-dependencies = ["sklearn", "datasets", "sentencepiece", "scipy"]
# ///
import copy
import sys
import types

sys.modules["turtle"] = types.SimpleNamespace(back=None)  # imported by basemodel, not used
import torch  # noqa: E402
from opendelta import LoraModel  # noqa: E402
from torch import nn  # noqa: E402

model = nn.Sequential(nn.Linear(4, 4))
LoraModel(backbone_model=model, modified_modules=["0"])
twin, x = copy.deepcopy(model), torch.ones(1, 4)
before = model(x)
nn.init.zeros_(twin[0].weight)
nn.init.zeros_(twin[0].bias)
print(
    "expected zeros from the copy, got",
    twin(x).tolist(),
    "which is the original's:",
    torch.equal(twin(x), before),
)

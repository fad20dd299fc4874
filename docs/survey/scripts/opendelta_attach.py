# /// script
# requires-python = "==3.11.*"
# dependencies = ["opendelta==0.3.2", "transformers==4.30.2", "torch==2.13.0", "numpy<2", "setuptools<81", "requests"]
#
# [tool.uv]
# exclude-dependencies = ["sklearn", "datasets", "sentencepiece", "scipy"]
# ///
import sys
import types

sys.modules["turtle"] = types.SimpleNamespace(back=None)  # imported by basemodel, not used
from opendelta import LoraModel  # noqa: E402
from torch import nn  # noqa: E402

model = nn.Sequential(nn.Linear(4, 4))
delta = LoraModel(backbone_model=model, modified_modules=["0"])
delta.detach()
try:
    delta.attach()
except NotImplementedError as error:
    print("expected the module back, got", repr(error))

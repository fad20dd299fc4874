# /// script
# dependencies = ["autogluon.multimodal==1.6.3"]
# ///
from autogluon.multimodal.models.adaptation_layers import IA3Linear

try:
    IA3Linear(4, 3, merge_weights=False).eval()
except NameError as error:
    print("expected the layer in evaluation mode, got NameError:", error)

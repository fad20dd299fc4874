# /// script
# dependencies = ["lycoris-lora==4.1.3", "torch==2.13.0", "numpy"]
# ///
from lycoris import create_lycoris
from lycoris.wrapper import create_lycoris_from_weights
from torch import nn

network = create_lycoris(nn.Sequential(nn.Linear(8, 8)), 1.0, linear_dim=4, algo="ia3")
network.apply_to()
try:
    create_lycoris_from_weights(1.0, None, nn.Sequential(nn.Linear(8, 8)), weights_sd=network.state_dict())
except TypeError as error:
    print("expected the network back, got TypeError:", error)

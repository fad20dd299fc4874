"""The probe: what adapters do to the weights of a pretrained model (`make probe`)."""

"""Small, hackable adapters for `torch.nn.Linear`."""

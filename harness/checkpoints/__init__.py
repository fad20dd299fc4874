"""Adapter files and merged checkpoints, asked from their bytes: no model is built, no library of adapters is needed."""

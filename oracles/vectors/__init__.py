"""Checkpoint vectors: hostile adapter files with what they mean, written from the equations alone."""

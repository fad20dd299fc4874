"""Checkpoint vectors: hostile adapter files with what they mean, written from the equations alone.

A method in PEFT's format is one file, named after it; everything else here knows none of them.
"""

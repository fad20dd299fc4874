"""Kinds of public faults that vectors are for, and the modules that most of them adapt."""

from __future__ import annotations

QK = ("layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "layers.1.k_proj")
BIASED, UNBIASED = QK[::2], QK[1::2]
CONV1D = ("h.0.c_attn", "h.0.c_proj", "h.1.c_fc")
SCALE = "scale lost or misread"
PATTERN = "per-layer rank or alpha ignored"
LAYOUT = "weights of another layout"
SILENT = "loaded without an error and not applied"
NAMES = "names matched by accident"
FUSED = "fused projections"
EXPERTS = "stacked expert weights"
BIAS = "a bias left out"
TIED = "tied embeddings"
SAVED = "modules saved whole and lost"
DTYPE = "mixed dtypes"
SHARDS = "sharded files"
OTHER = "a method's own equation misread"

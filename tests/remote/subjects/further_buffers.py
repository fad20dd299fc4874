"""lora_lite beside another release of transformers: its models have a buffer that the audit's have not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.append(str(Path(__file__).parents[3]))

from harness.subjects.lora_lite import LoraLite

WITHOUT = transformers.LlamaForCausalLM.__init__


def with_mask(self: Any, config: Any) -> None:
    """The model, and a causal mask that is saved nowhere."""
    WITHOUT(self, config)
    self.model.register_buffer("mask", torch.ones(3, 3), persistent=False)


class Beside(LoraLite):
    """lora_lite."""

    def __init__(self) -> None:
        transformers.LlamaForCausalLM.__init__ = with_mask  # type: ignore[method-assign, assignment]

"""The variants, one file each. Importing this package registers them."""

from .lora import LoRA

__all__ = ["LoRA"]

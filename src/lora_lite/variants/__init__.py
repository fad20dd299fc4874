"""The variants, one file each. Importing this package registers them."""

from .delora import DeLoRA
from .dora import DoRA
from .hra import HRA
from .ia3 import IA3
from .lora import LoRA
from .pissa import PiSSA

__all__ = ["HRA", "IA3", "DeLoRA", "DoRA", "LoRA", "PiSSA"]

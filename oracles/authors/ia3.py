"""r-three/t-few: `LoRALinear` with rank 0 and scaling rank 1, the paper's (IA)3."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from oracles.authors.base import AuthorImplementation
from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from refs import catalog as catalogue
from refs.locate import locate

__all__ = ["Ia3Author"]


class Ia3Author(AuthorImplementation):
    """One side trains: the output's vector as in ia3.json, or the input's for the feed-forward form.

    The forward looks at `requires_grad`: a frozen side is not applied at all, so the flags are set here.
    ``general`` takes the file's other path, W * (b a), by asking for a low-rank term that stays zero.
    """

    variant, alias = "ia3", "orig_ia3_lora.py"
    needs = ("orig_ia3_config.json",)

    def __init__(
        self, catalog: catalogue.Catalog | None = None, cache: Path | None = None, general: bool = False
    ) -> None:
        super().__init__(catalog, cache)
        self.general = general

    def adapter_dtype(self, base: torch.dtype) -> torch.dtype:
        """Vectors stay float32 over a half-precision base; the result is then float32 too."""
        return base if base.itemsize >= 4 else torch.float32

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The layer with init_scale 0 as in ia3.json. Raises Unsupported for half-precision input gates."""
        if spec.feedforward and base.weight.dtype.itemsize < 4:
            raise Unsupported("ia3/author: a float32 gate on a half-precision input does not fit the weight")
        layer = self.module().LoRALinear(base, int(self.general), 1, 0.0).requires_grad_(False)
        layer.multi_lora_a.requires_grad_(spec.feedforward)
        layer.multi_lora_b.requires_grad_(not spec.feedforward)
        side = Slot(layer.multi_lora_a, _row) if spec.feedforward else Slot(layer.multi_lora_b, _column)
        return Adapted(layer, {"l": side})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """The trainable names of ia3.json. Raises Unsupported for the input side, which it never trains."""
        path = locate(self.catalog.reference("orig_ia3_config.json"), self.cache)
        pattern = json.loads(path.read_text(encoding="utf-8"))["trainable_param_names"]
        trained = {name for name, tensor in adapted.module.named_parameters() if tensor.requires_grad}
        if not any(re.fullmatch(pattern, name) for name in trained):
            raise Unsupported("ia3/author: ia3.json trains and saves the output side only")
        return {k: v for k, v in adapted.module.state_dict().items() if re.fullmatch(pattern, k)}


def _row(tensor: Tensor) -> Tensor:
    return tensor[0]


def _column(tensor: Tensor) -> Tensor:
    return tensor[:, 0]

"""microsoft/LoRA through its PyPI package `loralib`: live wherever the audit is installed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.base import AuthorImplementation, folded
from oracles.implementation import Adapted, AdapterSpec, Slot

__all__ = ["LoraAuthor"]


class LoraAuthor(AuthorImplementation):
    """`loralib.Linear`; made with merge_weights off, since its `eval()` would fold the adapter in."""

    variant, alias = "lora", "orig_lora_layers.py"
    needs = ("orig_lora_utils.py",)

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The weights are set afterwards: the constructor draws its own."""
        layer = self.module().Linear(
            base.in_features,
            base.out_features,
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            merge_weights=False,
            bias=base.bias is not None,
        )
        layer.weight, layer.bias = base.weight, base.bias
        return Adapted(layer, {"A": Slot(layer.lora_A), "B": Slot(layer.lora_B)})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """`loralib.lora_state_dict`."""
        stubs = {f"{loader.PACKAGE}.layers": self.module()}
        utils = self.module("orig_lora_utils.py", stubs=stubs)
        return utils.lora_state_dict(adapted.module)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """What `eval()` does when merge_weights is on."""
        return folded(adapted.module)

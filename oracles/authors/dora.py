"""NVlabs/DoRA, commonsense_reasoning: a fork of PEFT, of which one file is enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.base import AuthorImplementation, folded
from oracles.implementation import Adapted, AdapterSpec, Slot
from refs import catalog as catalogue

__all__ = ["DoraAuthor", "as_model"]


class DoraAuthor(AuthorImplementation):
    """`Linear` with dora_simple, the norm detached, as the authors' scripts use it, unless ``simple`` is off.

    The magnitude is random until the author's `_replace_module` fills it with the norms of the weight's rows.
    """

    variant, alias = "dora", "orig_dora.py"
    needs = ("orig_dora_save.py",)

    def __init__(
        self, catalog: catalogue.Catalog | None = None, cache: Path | None = None, simple: bool = True
    ) -> None:
        super().__init__(catalog, cache)
        self.simple = simple

    def adapter_dtype(self, base: torch.dtype) -> torch.dtype:
        """The fork leaves the adapter in float32 over a half-precision base, and casts the result back."""
        return base if base.itemsize >= 4 else torch.float32

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The author's layer, put in place by the author's own code."""
        author = self.module(within="tuners", stubs=loader.peft_package())
        layer = author.Linear(
            base.in_features,
            base.out_features,
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=spec.dropout,
            merge_weights=False,
            dora_simple=self.simple,
            bias=base.bias is not None,
        )
        author.DoraModel._replace_module(None, nn.Module(), "layer", layer, base)
        factors = {"A": Slot(layer.lora_A.weight), "B": Slot(layer.lora_B.weight)}
        return Adapted(layer, {**factors, "m": Slot(layer.weight_m_wdecomp.weight, _first_column)})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """What the fork's get_peft_model_state_dict picks for DoRA."""
        saver = self.module("orig_dora_save.py", within="utils", stubs=loader.peft_package())
        return saver.get_peft_model_state_dict(as_model(adapted.module, loader.PeftType.DORA))

    def merge(self, adapted: Adapted) -> nn.Linear:
        """What `eval()` does when merge_weights is on."""
        return folded(adapted.module)


def _first_column(tensor: Tensor) -> Tensor:
    return tensor[:, 0]


def as_model(layer: nn.Module, kind: object) -> SimpleNamespace:
    """As much of a PEFT model as its saving looks at."""
    config = SimpleNamespace(peft_type=kind, bias="none", modules_to_save=None)
    return SimpleNamespace(state_dict=layer.state_dict, peft_config=config, modules_to_save=None)

"""ExplainableML/DeLoRA: a fork of PEFT, of which one file is enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.base import AuthorImplementation, folded
from oracles.authors.dora import as_model
from oracles.implementation import Adapted, AdapterSpec, Slot
from oracles.variants import VARIANTS, Form, paper
from oracles.variants.record import of_forward
from refs import catalog as catalogue

__all__ = ["DeloraAuthor"]


def _against_the_start(
    x: Tensor, W: Tensor, b: Tensor | None, p: paper.Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    """y = x W^T + b + (lambda/r) (x |W|_col) (B Xi A - D Phi C)^T: the present lambda on both terms, no clamp."""
    h = dropped * torch.linalg.vector_norm(W, dim=0)
    delta = _term(h, p["A"], p["B"]) - _term(h, p["C"], p["D"])
    return paper.linear(x, W, b) + p["lambda"] / spec.rank * delta


def _term(h: Tensor, A: Tensor, B: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(A, dim=1) * torch.linalg.vector_norm(B, dim=0)
    return h @ A.mT / lengths @ B.mT


class DeloraAuthor(AuthorImplementation):
    """`Linear`: trained A, B against the frozen copies C, D of their start, both times the current lambda.

    The constructor makes C, D share the storage of A, B, so that on a CPU training moves both and the weight
    never; a change of device or dtype ends that. ``as_shipped`` keeps the sharing, by default it is ended.
    """

    variant, alias = "delora", "orig_delora.py"
    needs = ("orig_delora_save.py",)

    @classmethod
    def form(cls) -> Form:
        """Eq. (9) with the present lambda on both terms."""
        return VARIANTS[cls.variant].form.but(equation=of_forward(_against_the_start))

    def __init__(
        self, catalog: catalogue.Catalog | None = None, cache: Path | None = None, as_shipped: bool = False
    ) -> None:
        super().__init__(catalog, cache)
        self.as_shipped = as_shipped

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """No `w_norm`: the author takes the norms of the weight anew at every call."""
        author = self.module(within="tuners", stubs=loader.peft_package())
        layer = author.Linear(
            base.in_features,
            base.out_features,
            r=spec.rank,
            delora_lambda=float(spec.lambda0),
            delora_dropout=spec.dropout,
            bias=base.bias is not None,
        )
        author.DeloraModel._replace_module(None, nn.Module(), "layer", layer, base)
        if not self.as_shipped:
            layer.frozen_C.data, layer.frozen_D.data = (
                layer.frozen_C.data.clone(),
                layer.frozen_D.data.clone(),
            )
        trained = {"A": layer.delora_A.weight, "B": layer.delora_B.weight, "lambda": layer.delora_lambda}
        frozen = {"C": layer.frozen_C, "D": layer.frozen_D}
        return Adapted(layer, {name: Slot(tensor) for name, tensor in (trained | frozen).items()})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """What the fork's get_peft_model_state_dict picks for DeLoRA."""
        saver = self.module("orig_delora_save.py", within="utils", stubs=loader.peft_package())
        return saver.get_peft_model_state_dict(as_model(adapted.module, loader.PeftType.DELORA))

    def merge(self, adapted: Adapted) -> nn.Linear:
        """What `eval()` does when merge_weights is on."""
        return folded(adapted.module)

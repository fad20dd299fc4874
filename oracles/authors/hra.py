"""DaShenZi721/HRA, input side: the form of generation/control and the one of nlu, the same equation twice."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from torch import Tensor, nn

from oracles.authors.base import AuthorImplementation
from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported

__all__ = ["HraControlAuthor", "HraNluAuthor"]


class HraControlAuthor(AuthorImplementation):
    """`HRAInjectedLinear`: W H_1 ... H_r, columns in equal pairs, the identity matrix always in float32."""

    variant, alias = "hra", "orig_hra_control.py"
    low_precision = False

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Raises Unsupported for odd ranks."""
        _even(self.name, spec)
        author = self.module()
        biased = base.bias is not None
        layer = author.HRAInjectedLinear(
            base.in_features, base.out_features, biased, spec.rank, spec.gram_schmidt
        )
        layer.fixed_linear.weight, layer.fixed_linear.bias = base.weight, base.bias
        return Adapted(layer, {"U": Slot(layer.hra_u)})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """The vectors."""
        return {k: v for k, v in adapted.module.state_dict().items() if k.endswith("hra_u")}


class HraNluAuthor(AuthorImplementation):
    """`HRALinear`: the same with its identity matrix in the input's dtype."""

    variant, oracle, alias = "hra", "author_nlu", "orig_hra_nlu.py"

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Raises Unsupported for odd ranks."""
        _even(self.name, spec)
        config = SimpleNamespace(hra=SimpleNamespace(r=spec.rank, apply_GS=spec.gram_schmidt))
        layer = self.module().HRALinear(
            base.in_features, base.out_features, config, bias=base.bias is not None
        )
        layer.weight, layer.bias = base.weight, base.bias
        return Adapted(layer, {"U": Slot(layer.hra_u)})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """Names ending in `hra_u`."""
        return {k: v for k, v in adapted.module.state_dict().items() if k.endswith("hra_u")}


def _even(name: str, spec: AdapterSpec) -> None:
    if spec.rank % 2:
        raise Unsupported(f"{name}: an odd rank r makes r - 1 columns, and the forward indexes r of them")

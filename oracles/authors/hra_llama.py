"""DaShenZi721/HRA, llama: a fork of PEFT's OFT that reflects the output, (H_1 ... H_r)^T W, with an epsilon.

`U` is (out, r) here and (in, r) everywhere else: the files act on the other side of the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oracles.authors import loader
from oracles.authors.base import AuthorImplementation, plain
from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from oracles.variants import VARIANTS, Form, paper
from oracles.variants.hra import gram_schmidt
from oracles.variants.record import of_forward
from refs import catalog as catalogue

__all__ = ["HraLlamaAuthor", "HraLlamaGsAuthor"]

EPS = 6e-5  # the config's


class _Lycoris:
    """As much of PEFT's LycorisLayer as the files use: one active adapter over a base layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.module_dropout: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.disable_adapters = False
        self._active_adapter = ""

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    @property
    def active_adapters(self) -> list[str]:
        return [self._active_adapter]

    @property
    def merged(self) -> bool:
        return bool(self.merged_adapters)

    def set_adapter(self, names: object) -> None:
        """The one adapter is always active."""


def _to_merge(layer: _Lycoris, names: list[str] | None) -> list[str]:
    return [n for n in names or layer.active_adapters if n not in layer.merged_adapters]


_UTILS = loader.stand_in("lycoris_utils", LycorisLayer=_Lycoris, check_adapters_to_merge=_to_merge)


def _output_side(
    x: Tensor, W: Tensor, b: Tensor | None, p: paper.Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    """y = x (H_r ... H_1 W)^T + b with v = u / sqrt(|u|^2 + eps); U is (out, r)."""
    y = x @ W.mT
    for u in p["U"].mT:
        y = y - 2 * (y @ u)[..., None] * u / (u @ u + EPS)
    return y if b is None else y + b


def _projected_output(
    x: Tensor, W: Tensor, b: Tensor | None, p: paper.Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    """y = x ((I - 2 Q Q^T) W)^T + b, Q the columns of U made orthonormal."""
    y, Q = x @ W.mT, gram_schmidt(p["U"])
    y = y - 2 * (y @ Q) @ Q.mT
    return y if b is None else y + b


class HraLlamaAuthor(AuthorImplementation):
    """layer.py: the chain with v = u / sqrt(|u|^2 + eps); the config's eps, 6e-5, unless another is given.

    In training mode each forward draws one random number, also without dropout.
    """

    variant, oracle, alias = "hra", "author_llama", "orig_hra_layer.py"
    gram_schmidt = False

    @classmethod
    def form(cls) -> Form:
        """Reflections of the output."""
        return VARIANTS[cls.variant].form.but(equation=of_forward(_output_side))

    @classmethod
    def has(cls, mode: str | None) -> bool:
        """One of the two files has Gram-Schmidt and nothing else, the other everything else."""
        return (mode == "gram_schmidt") == cls.gram_schmidt

    def __init__(
        self, catalog: catalogue.Catalog | None = None, cache: Path | None = None, eps: float = EPS
    ) -> None:
        super().__init__(catalog, cache)
        self.eps = eps

    def build(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """Raises Unsupported where the other of the two files is asked for."""
        if spec.gram_schmidt != self.gram_schmidt:
            raise Unsupported(
                f"{self.name} is the file {'with' if self.gram_schmidt else 'without'} Gram-Schmidt"
            )
        if self.gram_schmidt and spec.rank > base.out_features:
            raise Unsupported(f"{self.name}: more vectors than output features cannot start as unit vectors")
        layer = self._file().Linear(base, "default", spec.rank, spec.dropout, eps=self.eps)
        return Adapted(layer, {"U": Slot(layer.oft_r["default"])})

    def state(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """The fork's prefix, with the adapter's name taken out as PEFT does."""
        named = adapted.module.state_dict().items()
        return {key.replace(".default", ""): value for key, value in named if "oft_" in key}

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """The saved vectors over a fresh adapter's."""
        adapted = self.adapt(base, spec)
        with torch.no_grad():
            adapted.slots["U"].tensor.copy_(torch.load(path, weights_only=True)["oft_r"])
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """The author's merge."""
        layer: Any = copy.deepcopy(adapted.module)
        layer.merge()
        return plain(layer.base_layer.weight, layer.base_layer.bias)

    def _file(self) -> Any:
        return self.module(within="oft", stubs={"peft.tuners.lycoris_utils": _UTILS})


class HraLlamaGsAuthor(HraLlamaAuthor):
    """layer_GS_HRA.py: I - 2 Q Q^T on the output side, started at the first unit vectors."""

    oracle, alias = "author_llama_gs", "orig_hra_layer_gs.py"
    gram_schmidt = True

    @classmethod
    def form(cls) -> Form:
        """A projection of the output."""
        return VARIANTS[cls.variant].form.but(equation=of_forward(_projected_output))

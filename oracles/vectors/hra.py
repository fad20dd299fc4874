"""HRA in PEFT's format: a chain of reflections, and the vectors that are for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft
from oracles.vectors.faults import LAYOUT, OTHER, QK
from oracles.vectors.held import Held
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.refused import change, spoiled
from oracles.vectors.update import Reflect, Update

ORTHONORMAL = "gram_schmidt"  # the vectors are orthonormalised first
FLAG = "apply_GS"


def _updates(a: AdaptedModule) -> Updates:
    """``W' = W H₁ H₂ … H_r`` (Eq. (1))."""
    return {a.parameter: Reflect(a.factors["U"], ORTHONORMAL in a.flags)}


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    U, orthonormal = a.factors["U"].double(), ORTHONORMAL in a.flags
    if U.shape[1] > 1:
        yield from _otherwise(a, U, orthonormal)
        yield a.read_as("hra.first_only", "only the first reflection is applied", Reflect(U[:, :1]))
    even = U[:, : U.shape[1] // 2 * 2]
    if U.shape[1] > 1 and even.shape != U.shape:
        sentence = "the last vector of an odd rank is left out"
        yield a.read_as("hra.even_only", sentence, Reflect(even, orthonormal))
    yield a.read_as("hra.not_normalised", "the vectors are not normalised", _Raw(U))


def _otherwise(a: AdaptedModule, U: Tensor, orthonormal: bool) -> Iterator[Reading]:
    if orthonormal:
        yield a.read_as("hra.not_orthonormal", "Gram-Schmidt is left out", Reflect(U))
        return
    sentence = "the reflections are multiplied from the other end"
    yield a.read_as("hra.reversed", sentence, Reflect(U, reverse=True))
    sentence = "the vectors are orthonormalised first"
    yield a.read_as("hra.gram_schmidt", sentence, Reflect(U, gram_schmidt=True))


@dataclass
class _Raw(Update):
    U: Tensor

    def rows(self, W: Tensor, start: int) -> Tensor:
        for u in self.U.mT:
            W = W - 2 * (W @ u)[:, None] * u
        return W


def _read(held: Held) -> AdaptedModule:
    held.expect_factors({"U"})
    held.expect_shape("U", (math.prod(held.shape[1:]), held.rank))
    flags = frozenset({ORTHONORMAL} if held.config.get(FLAG) else ())
    kind = "conv2d" if held.kernel else "linear"
    return AdaptedModule(held.module, METHOD, kind, held.factors, held.rank, flags=flags, replaced=held.whole)


METHOD: Method = Method(
    "hra", "HRA", {r"hra_u(\.\w+)?": "U"}, updates=_updates, readings=(_readings,), read=_read
)


def hra(draft: Draft, modules: Sequence[str], rank: int = 4, gram_schmidt: bool = False) -> Draft:
    """Reflections; no two vectors alike, so that their order matters."""
    flags = frozenset({ORTHONORMAL} if gram_schmidt else ())
    for name in modules:
        layer = draft.layer(name)
        U = draft.draw(name, "U", layer["in"] * math.prod(layer.get("kernel", ())), rank)
        draft.modules.append(AdaptedModule(name, METHOD, layer["kind"], {"U": U}, rank, flags=flags))
        draft.put(name, "hra_u", U)
    own: Config = {"r": rank, FLAG: gram_schmidt, "init_weights": True, "bias": "none"}
    return draft.finish(METHOD.peft_type, list(modules), **own, inference_mode=True)


def _equation() -> Iterator[Draft]:
    must = ("hra.reversed", "hra.gram_schmidt", "hra.not_normalised", "hra.first_only")
    orthonormal = ("hra.not_orthonormal", "hra.not_normalised", "hra.first_only")
    modules = QK[:3]
    yield hra(Draft("hra.even", "mlp", OTHER, must), modules, 4)
    yield hra(Draft("hra.odd", "mlp", OTHER, (*must, "hra.even_only")), modules, 3)
    yield hra(Draft("hra.one", "mlp", OTHER, ("hra.not_normalised",)), modules, 1)
    yield hra(Draft("hra.two", "mlp", OTHER, must), modules, 2)
    yield hra(Draft("hra.gram_schmidt.even", "mlp", OTHER, orthonormal), modules, 4, True)
    yield hra(Draft("hra.gram_schmidt.odd", "mlp", OTHER, (*orthonormal, "hra.even_only")), modules, 3, True)
    yield hra(Draft("hra.conv2d", "conv", LAYOUT, ("hra.reversed",)), ["conv"], 3)
    kernels = Draft("hra.conv2d.gram_schmidt", "conv", LAYOUT, ("hra.not_orthonormal",))
    yield hra(kernels, ["conv", "point"], 2, True)


def _refused() -> Iterator[Draft]:
    fewer = change("hra_u", lambda U: U[:, :2])
    yield spoiled("hra_other_rank", "fewer reflections than the rank", fewer, lambda d: hra(d, QK[:3], 4))


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = hra
WORD = "hra_u"
VECTORS = {"equation": _equation, "refused": _refused}

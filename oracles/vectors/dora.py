"""DoRA in PEFT's format: LoRA's file with a magnitude for each output, and the vectors that are for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oracles.vectors.draft import Draft, sizes
from oracles.vectors.factor_readings import layouts, scaled
from oracles.vectors.faults import (
    BIAS,
    BIASED,
    CONV1D,
    DTYPE,
    FUSED,
    LAYOUT,
    OTHER,
    PATTERN,
    QK,
    SCALE,
    SHARDS,
    SILENT,
    TIED,
    UNBIASED,
)
from oracles.vectors.held import Held
from oracles.vectors.lora import ALPHA, ENDINGS, FUSED_BOTH, TYPE, factors_of, lora, scale
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.refused import change, drop, spoiled
from oracles.vectors.two_factors import low_rank
from oracles.vectors.update import Gate, LowRank, Magnitude, Twice, Update

MAGNITUDE = "lora_magnitude_vector"


def _updates(a: AdaptedModule) -> Updates:
    """``W' = m (W + s B A) / ‖W + s B A‖`` (Eq. (5)), one norm per output."""
    by_columns = a.kind in ("conv1d", "embedding")
    return {a.parameter: Magnitude(low_rank(a, a.scale), a.factors["m"], by_columns)}


def _read(held: Held) -> AdaptedModule:
    found = factors_of(held, METHOD, "m")
    return dataclasses.replace(found, factors={**found.factors, "m": found.factors["m"].flatten()})


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    low, right = low_rank(a, a.scale), a.update
    assert isinstance(right, Magnitude)
    yield a.read_as("dora.plain_lora", "the magnitude is ignored: plain LoRA", low)
    gate = Gate(right.magnitude, by_columns=right.by_columns)
    yield a.read_as("dora.not_normalised", "W + ΔW is scaled by m without its norm", Twice(low, gate))
    base = _BaseNorm(low, right)
    yield a.read_as("dora.norm_of_base", "the norm is the base's, without the update", base)
    if a.has_bias and not right.by_columns:
        # The factor m/‖V‖ of each output on the bias too: what merging W and b with one gate does.
        yield a.read_as("dora.bias_scaled", "the bias is scaled with the weight", _Bias(a), "bias")


@dataclass
class _Bias(Update):
    """The bias times m alone: the magnitude taken for a gate on the output."""

    a: AdaptedModule

    def rows(self, W: Tensor, start: int) -> Tensor:
        return W * self.a.factors["m"].double().flatten()[start : start + W.shape[0], None]


@dataclass
class _BaseNorm(Update):
    low: LowRank
    right: Magnitude
    squares: Tensor | None = None

    def prepare(self, blocks) -> None:  # type: ignore[no-untyped-def]
        self.squares = sum((rows.square().sum(0) for _, rows in blocks()), start=torch.zeros(()).double())

    def rows(self, W: Tensor, start: int) -> Tensor:
        m, V = self.right.magnitude.double().flatten(), self.low.rows(W, start)
        if self.right.by_columns:
            assert self.squares is not None
            return V * (m / self.squares.sqrt())
        return V * (m[start : start + W.shape[0]] / torch.linalg.vector_norm(W, dim=1))[:, None]


METHOD: Method = Method(
    "dora",
    TYPE,
    ENDINGS,
    updates=_updates,
    readings=(scaled, layouts, _readings),
    read=_read,
    is_meant=lambda config: bool(config.get("use_dora")),
    alpha=ALPHA,
    scale=scale,
)


def dora(
    draft: Draft,
    modules: Sequence[str],
    rank: int = 3,
    alpha: float = 7.0,
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    **more: Any,
) -> Draft:
    """LoRA's file, and a magnitude of each output that is not the norm of the base."""
    lora(draft, modules, rank, alpha, dtypes=dtypes, method=METHOD, use_dora=True, **more)
    for i, module in enumerate(draft.modules):
        outputs = sizes(draft.layer(module.module))[1]
        m = draft.draw(module.module, "m", outputs, low=40, high=120).abs()
        draft.modules[i] = dataclasses.replace(module, factors={**module.factors, "m": m})
        # A convolution's magnitude is saved as (1, out, 1, 1).
        shaped = m.reshape(1, -1, 1, 1) if module.kind == "conv2d" else m
        draft.put(module.module, MAGNITUDE, shaped, (dtypes or {}).get("m"))
    return draft


PLAIN = ("dora.plain_lora",)


def _patterns() -> Iterator[Draft]:
    rank = Draft("dora.rank_pattern", "mlp", PATTERN, ("pattern.rank",))
    yield dora(rank, QK, ranks={"q_proj": 5})
    alpha = Draft("dora.alpha_pattern", "mlp", PATTERN, ("pattern.alpha",))
    yield dora(alpha, QK, alphas={"k_proj": 2.0})


def _conv1d() -> Iterator[Draft]:
    yield dora(Draft("dora.conv1d", "gpt", LAYOUT, PLAIN), CONV1D, fan_in_fan_out=True)


def _embedding() -> Iterator[Draft]:
    yield dora(Draft("dora.embedding", "language", LAYOUT, PLAIN), ["embed_tokens"])


def _conv2d() -> Iterator[Draft]:
    for name, modules in (("three_by_three", ["conv"]), ("one_by_one", ["point"])):
        yield dora(Draft(f"dora.conv2d.{name}", "conv", LAYOUT, PLAIN), modules)


def _tied() -> Iterator[Draft]:
    draft = Draft("tied.embedding_dora", "tied", TIED, ("tie.follows",), tied="lm_head.weight")
    yield dora(draft, ["embed_tokens"])


def _prefixes() -> Iterator[Draft]:
    draft = dora(Draft("prefix.dora_weight", "mlp", SILENT, PLAIN, "apply_or_refuse"), QK)
    draft.keys = {k + ".weight" * k.endswith(MAGNITUDE): t for k, t in draft.keys.items()}
    yield draft


def _fused() -> Iterator[Draft]:
    yield dora(Draft("fused.dora", "fused", FUSED, ("fused.first_only", *PLAIN)), FUSED_BOTH)


def _dtypes() -> Iterator[Draft]:
    mixed = Draft("dtype.mixed_dora", "mlp_bf16", DTYPE, PLAIN, dtype=torch.bfloat16)
    yield dora(mixed, QK, dtypes={"m": torch.float32})


def _shards() -> Iterator[Draft]:
    yield dora(Draft("shards.dora", "sharded", SHARDS, ("modules.first_only",)), QK)


def _direction() -> Iterator[Draft]:
    must = (*PLAIN, "dora.not_normalised", "dora.norm_of_base", "scale.over_root_rank")
    yield dora(Draft("dora.linear", "mlp", OTHER, must), UNBIASED)
    yield dora(Draft("dora.with_bias", "mlp", BIAS, ("dora.bias_scaled", *must)), BIASED)
    root = ("scale.over_rank", "dora.norm_of_base")
    yield dora(Draft("dora.rslora", "mlp", SCALE, root), QK, rslora=True)
    yield dora(Draft("dora.rank_one", "mlp", OTHER, must[:3]), QK, 1, 3.0)


def _refused() -> Iterator[Draft]:
    make = lambda draft: dora(draft, QK)  # noqa: E731
    yield spoiled("dora_without_magnitude", "DoRA's magnitude is missing", drop(MAGNITUDE), make)
    of_inputs = change(MAGNITUDE, lambda m: torch.ones(5))
    yield spoiled("dora_magnitude_of_inputs", "the magnitude has one entry per input", of_inputs, make)

    def switched_off(draft: Draft) -> None:
        draft.config["use_dora"] = False

    yield spoiled("dora_flag_off", "a magnitude, and use_dora is false", switched_off, make)


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = dora
WORD = "lora_magnitude_vector"
VECTORS = {
    "patterns": _patterns,
    "conv1d": _conv1d,
    "embedding": _embedding,
    "conv2d": _conv2d,
    "tied": _tied,
    "prefixes": _prefixes,
    "fused": _fused,
    "dtypes": _dtypes,
    "shards": _shards,
    "direction": _direction,
    "refused": _refused,
}

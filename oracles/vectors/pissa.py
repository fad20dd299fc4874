"""PiSSA in PEFT's format: LoRA's file on what the principal part leaves of the base, and the vectors for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oracles.vectors.draft import Draft
from oracles.vectors.factor_readings import scaled
from oracles.vectors.faults import OTHER, PATTERN, QK, SCALE
from oracles.vectors.lora import ALPHA, ENDINGS, TYPE, factors_of, lora, scale
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.two_factors import bias_update, low_rank
from oracles.vectors.update import Residual


def _updates(a: AdaptedModule) -> Updates:
    """``W' = W_res + s B A``, ``W_res`` without W's r largest singular values (Eq. (4) and (5))."""
    low = low_rank(a, a.scale)
    return {a.parameter: Residual(low.left, low.right, principal=a.rank), **bias_update(a, a.scale)}


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    sentence = "the adapter is added to the whole base, not to the residual"
    yield a.read_as("pissa.no_residual", sentence, low_rank(a, a.scale))


def _is_meant(config: Mapping[str, Any]) -> bool:
    return str(config.get("init_lora_weights", "")).startswith("pissa") and not config.get("use_dora")


METHOD: Method = Method(
    "pissa",
    TYPE,
    ENDINGS,
    updates=_updates,
    readings=(scaled, _readings),
    read=lambda held: factors_of(held, METHOD),
    is_meant=_is_meant,
    alpha=ALPHA,
    scale=scale,
)


def pissa(draft: Draft, modules: Sequence[str], rank: int, alpha: float, **more: Any) -> Draft:
    """LoRA's file whose start PEFT reads as the residual's."""
    return lora(draft, modules, rank, alpha, method=METHOD, init_lora_weights="pissa", **more)


def _residual() -> Iterator[Draft]:
    must = ("pissa.no_residual",)
    yield pissa(Draft("pissa.plain", "mlp", OTHER, must), QK, 2, 2.0)
    yield pissa(Draft("pissa.alpha", "mlp", SCALE, (*must, "scale.one")), QK, 2, 5.0)
    root = Draft("pissa.rslora", "mlp", SCALE, (*must, "scale.over_rank"))
    yield pissa(root, QK, 3, 5.0, rslora=True)
    yield pissa(Draft("pissa.rank_one", "mlp", OTHER, must), QK, 1, 2.0)
    pattern = Draft("pissa.rank_pattern", "mlp", PATTERN, (*must, "pattern.rank"))
    yield pissa(pattern, QK, 2, 5.0, ranks={"q_proj": 3})
    # What PEFT writes for an adapter converted to LoRA: twice the rank and twice alpha (times √2 with rsLoRA).
    yield lora(Draft("pissa.converted", "mlp", SCALE, ("scale.one",)), QK, 4, 10.0)
    converted = Draft("pissa.converted_rslora", "mlp", SCALE, ("scale.over_rank",))
    yield lora(converted, QK, 6, 5.0 * 2**0.5, rslora=True)


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = lambda draft, modules: pissa(draft, modules, 2, 5.0)  # noqa: E731
WORD = "lora_B"
VECTORS = {"residual": _residual}

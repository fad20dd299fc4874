"""DeLoRA in PEFT's format: normalised factors with a trained strength, and the vectors that are for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from oracles.vectors.bases import base_tensors
from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft, of_pattern
from oracles.vectors.faults import FUSED, OTHER, PATTERN, QK
from oracles.vectors.held import Held
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.refused import drop, spoiled
from oracles.vectors.update import LowRank

CLAMP = 1e-4  # PEFT's guard on the two norms; the paper has none
INITIAL = "delora_lambda"  # the configuration's λ, with which training starts
FACTORS = ("A", "B", "lambda", "w_norm")


def _updates(a: AdaptedModule) -> Updates:
    return {a.parameter: _update(a)}


def _update(
    a: AdaptedModule, *, divide: bool = True, norms: str = "both", channels: bool = True, bound: float = 0.0
) -> LowRank:
    """Eq. (8) and (15): ``ΔW = (λ/r) B Ξ A ‖W‖``, ``Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)``."""
    A, B = a.factors["A"].double(), a.factors["B"].double()
    strength = bound or float(a.factors["lambda"])
    a_norms = torch.linalg.vector_norm(A, dim=1).clamp(min=CLAMP)
    b_norms = torch.linalg.vector_norm(B, dim=0).clamp(min=CLAMP)
    if norms == "frobenius":
        a_norms, b_norms = torch.linalg.matrix_norm(A), torch.linalg.matrix_norm(B)
    if norms == "none":
        a_norms = b_norms = torch.ones(())
    xi = strength / (a.rank if divide else 1) / (a_norms * b_norms)
    return LowRank(B * xi, A * a.factors["w_norm"].double() if channels else A)


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    for identity, sentence, update in (
        ("no_rank", "λ is not divided by the rank", _update(a, divide=False)),
        ("frobenius", "the norms are those of the whole matrices", _update(a, norms="frobenius")),
        ("no_norms", "the factors are not normalised", _update(a, norms="none")),
        ("no_w_norm", "‖W‖ of the input channels is left out", _update(a, channels=False)),
    ):
        yield a.read_as(f"delora.{identity}", sentence, update)
    if a.default_alpha:
        sentence = "λ is the configuration's, not the trained one of the file"
        yield a.read_as("delora.config_lambda", sentence, _update(a, bound=a.default_alpha))


def _read(held: Held) -> AdaptedModule:
    held.expect_factors(FACTORS)
    (outputs, inputs), r = held.shape, held.rank
    wanted = {"A": (r, inputs), "B": (outputs, r), "lambda": (1,), "w_norm": (inputs,)}
    for name, shape in wanted.items():
        held.expect_shape(name, shape)
    return AdaptedModule(
        held.module,
        METHOD,
        "linear",
        held.factors,
        r,
        default_rank=held.default_rank,
        default_alpha=float(held.config.get(INITIAL) or 0.0),
        replaced=held.whole,
    )


def _scale(held: Held) -> float | None:
    """``λ / r``, with the trained λ."""
    strength = held.factors.get("lambda")
    return None if strength is None or not held.rank else float(strength.flatten()[0]) / held.rank


METHOD: Method = Method(
    "delora",
    "DELORA",
    {rf"delora_{name}(\.\w+)?": name for name in FACTORS},
    updates=_updates,
    readings=(_readings,),
    read=_read,
    scale=_scale,
)


def delora(
    draft: Draft,
    modules: Sequence[str],
    rank: int = 3,
    *,
    ranks: Mapping[str, int] | None = None,
    **more: Any,
) -> Draft:
    """A trained λ that is not the configuration's, and a w_norm that is the base's."""
    ranks, initial = dict(ranks or {}), 15.0
    base = base_tensors(draft.model)
    for name in modules:
        layer, r = draft.layer(name), int(of_pattern(ranks, name, rank))
        w_norm = torch.linalg.vector_norm(base[f"{name}.weight"], dim=0)
        factors = {
            "A": draft.draw(name, "A", r, layer["in"]),
            "B": draft.draw(name, "B", layer["out"], r),
            "lambda": draft.draw(name, "lambda", 1, low=90, high=120).abs(),
            "w_norm": (w_norm * 64).round() / 64,
        }
        module = AdaptedModule(name, METHOD, layer["kind"], factors, r, default_rank=rank)
        draft.modules.append(dataclasses.replace(module, default_alpha=initial))
        for factor, tensor in factors.items():
            draft.put(name, f"delora_{factor}", tensor)
    own: Config = {"r": rank, INITIAL: initial, "module_dropout": 0.0, "bias": "none", "rank_pattern": ranks}
    own |= {"lambda_pattern": {}, "init_weights": True, "inference_mode": True}
    return draft.finish(METHOD.peft_type, list(modules), **{**own, **more})


def _equation() -> Iterator[Draft]:
    must = ("delora.no_rank", "delora.frobenius", "delora.no_w_norm", "delora.config_lambda")
    yield delora(Draft("delora.rank_three", "mlp", OTHER, must), QK, 3)
    yield delora(Draft("delora.rank_two", "mlp", OTHER, must), QK, 2)
    yield delora(Draft("delora.rank_one", "mlp", OTHER, ("delora.no_norms", "delora.no_w_norm")), QK, 1)
    yield delora(Draft("delora.rank_above_width", "mlp", OTHER, must), QK, 8)
    pattern = Draft("delora.rank_pattern", "mlp", PATTERN, ("delora.no_rank",))
    yield delora(pattern, QK, 3, ranks={"q_proj": 2})
    yield delora(Draft("delora.fused", "fused", FUSED, must), ["attn.qkv_proj", "mlp.gate_up_proj"], 3)


def _refused() -> Iterator[Draft]:
    make = lambda draft: delora(draft, QK, 3)  # noqa: E731
    yield spoiled("delora_without_lambda", "DeLoRA's λ is missing", drop(INITIAL), make)


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = delora
WORD = "delora_A"
VECTORS = {"equation": _equation, "refused": _refused}

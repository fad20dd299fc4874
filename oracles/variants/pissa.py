"""PiSSA (Meng et al., arXiv 2404.02948v4): LoRA that starts from the principal singular triples of the weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants import lora
from oracles.variants.paper import scale
from oracles.variants.record import (
    Binding,
    Call,
    Canonical,
    Factorised,
    Mistake,
    Parameters,
    Variant,
    form_of,
)
from oracles.variants.shared_mistakes import (
    DROPS,
    backward_unscaled,
    branches,
    common,
    dropouts,
    lost_bias,
    more_branches,
    more_dropouts,
    own_biases,
    scales,
)
from oracles.variants.shared_parts import RSLORA, A, B, adding, no_bias


def pissa(call: Call, do: Any) -> Tensor:
    """PiSSA Eq. (5) on the residual weight ``p["W"]`` of Eq. (4); the base weight itself is not used."""
    if call.place == "correction":
        return _corrected(call, do)
    return lora.lora(dataclasses.replace(call, W=call.p["W"]), do)


def _corrected(call: Call, do: Any) -> Tensor:
    """The whole W, less its principal part of the dropped x: one mask for it and for the factors."""
    mask = call.mask(torch.ones_like(call.x))
    taken_out = (do.base_input(call.x) * mask) @ (call.W - call.p["W"]).mT
    whole = dataclasses.replace(call, place="input", mask=lambda t: t * mask)
    return lora.lora(whole, do) - taken_out


def principal_factors(W: Tensor, spec: AdapterSpec, do: Any) -> dict[str, Tensor]:
    """PiSSA Eq. (2)-(4) for any α: ``A = √(S_r/s) V_rᵀ``, ``B = U_r √(S_r/s)``, ``W_res = W − s B A``."""
    U, S, Vh = do.triples(*torch.linalg.svd(W, full_matrices=False), spec.rank)
    s = do.scale(spec)
    in_A, in_B = do.factors(S, s)
    A, B = in_A[:, None] * Vh, U * in_B
    return {"A": A, "B": B, "W": do.residual(W, A, B, s)}


def _largest(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    return U[:, :r], S[:r], Vh[:r]


def _smallest(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    return U[:, -r:], S[-r:], Vh[-r:]


def _balanced(S: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return (S / s).sqrt(), (S / s).sqrt()


def _subtracted(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return W - s * (B @ A)


TENSORS = (
    Canonical("A", A.shape, far=A.far, factor=True),
    Canonical("B", B.shape, far=B.far, factor=True),
    Canonical("W", lambda out, in_, spec: (out, in_), role="base"),
)
FORM = form_of(
    pissa,
    TENSORS,
    principal_factors,
    **lora.PARTS,
    triples=_largest,
    factors=_balanced,
    residual=_subtracted,
)

UNBALANCED = "the product is right, but the gradients of A and B are those of another factorisation"
BALANCE = "give each factor the square root: A = √(S/s) Vᵀ, B = U √(S/s)"
MISTAKES = (
    Mistake(
        "pissa.minor_components",
        "the smallest singular triples are trained, the largest frozen in the residual",
        "this is the opposite of the method (its 'minor components' ablation): the principal directions never move",
        {"triples": _smallest},
        "take the first r singular triples, those of the largest singular values",
    ),
    Mistake(
        "pissa.unbalanced",
        "all singular values are in A: B = U, A = S Vᵀ / s",
        UNBALANCED,
        {"factors": lambda S, s: (S / s, torch.ones_like(S))},
        BALANCE,
    ),
    Mistake(
        "pissa.unbalanced_b",
        "all singular values are in B: B = U S / s, A = Vᵀ",
        UNBALANCED,
        {"factors": lambda S, s: (torch.ones_like(S), S / s)},
        BALANCE,
    ),
    Mistake(
        "pissa.no_scale_compensation",
        "the factors leave α/r out (B A = U S Vᵀ) and the residual subtracts B A unscaled",
        "with α ≠ r the adapted layer does not start as the base layer",
        {"factors": lambda S, s: (S.sqrt(), S.sqrt()), "residual": lambda W, A, B, s: W - 1.0 * (B @ A)},
        "divide both factors by √(α/r), and subtract (α/r) B A from the weight",
    ),
    Mistake(
        "pissa.scaled_residual",
        "the factors leave α/r out: (α/r) B A is α/r times the principal part",
        "α/r of the principal part is trained, and what it is trained beside is not the residual of Eq. (4)",
        {"factors": lambda S, s: (S.sqrt(), S.sqrt())},
        "divide both factors by √(α/r), so that (α/r) B A is the principal part itself",
        severity="major",  # the function is right from the start; the authors avoid the question by setting α = r
    ),
    Mistake(
        "pissa.compensated_in_one_factor",
        "α/r is divided out of B alone instead of √(α/r) out of each factor",
        UNBALANCED,
        {"factors": lambda S, s: (S.sqrt(), S.sqrt() / s)},
        BALANCE,
    ),
    Mistake(
        "pissa.residual_not_subtracted",
        "the principal part is left in the base weight",
        "the adapted layer starts with its principal part doubled",
        {"residual": lambda W, A, B, s: W.clone()},
        "subtract (α/r) B A from the base weight when the adapter is attached",
    ),
    *scales("pissa"),
    *dropouts("pissa"),
    *common("pissa"),
    lost_bias("pissa", {"bias": no_bias}),
    *branches("pissa"),
    *more_dropouts("pissa"),
    Mistake(
        "pissa.dropout_on_correction",
        "the frozen part that is subtracted is dropped too, with the adapter branch's input",
        "what is regularised is the change since the start, and part of the frozen path with it: at the start dropout "
        "changes nothing, where the references drop the principal part",
        {"place": "correction"},
        "take the frozen part out of the weight, or compute it from x itself; drop the trained factors' input alone",
        documented=(rf"{DROPS}(frozen|subtracted|initial) (part|factors|product|correction)",),
    ),
    *more_branches("pissa"),
    backward_unscaled("pissa"),
    *own_biases("pissa"),
)


def _residual(W: Tensor, p: Parameters, spec: AdapterSpec) -> Tensor:
    """PiSSA Eq. (4): ``W − (α/r) B A`` (out, in)."""
    return W - scale(spec) * (p["B"] @ p["A"])


VARIANT = Variant(
    id="pissa",
    order=2,
    title="PiSSA",
    paper="arXiv 2404.02948v4",
    equation="y = x (W_res + (α/r) B A)ᵀ + b, with A, B from the r largest singular triples and W_res = W − (α/r) B A",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="each adds what it changes of the base, W + Σ (W_res,i + s_i B_i A_i − W): what is left of W is W "
    "less the principal part of every active one; PEFT takes each part out for good, active or not",
    compose_adapters=adding(FORM),
    peft=Binding(
        lambda spec, targets: lora.config(spec, targets, init_lora_weights="pissa"),
        {**lora.FACTORS, "W": "base_layer.weight"},
        {
            "shapes": (lora.LAYER, "LoraLayer.update_layer"),
            "init": (lora.LAYER, "LoraLayer.pissa_init"),
            "forward": (lora.LAYER, "Linear.forward"),
        },
        reads=lora.reads("pissa"),
        evaluated_as="lora",
    ),
    options=(RSLORA,),
    factorised=Factorised(
        ("A", "B"),
        _residual,
        {
            "(α/r) B A": lambda p, spec: scale(spec) * (p["B"] @ p["A"]),
            "singular values of A": lambda p, spec: torch.linalg.svdvals(p["A"]),
            "singular values of B": lambda p, spec: torch.linalg.svdvals(p["B"]),
        },
    ),
    has_dropout=True,
    file_without_alpha=lora.VARIANT.file_without_alpha,
    refuses_dtypes=("float64",),
    in_domain=lambda out, in_, spec: spec.rank <= min(out, in_),
)

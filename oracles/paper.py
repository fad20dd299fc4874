"""The six papers' equations as pure float64 functions: parameters in, output out, nothing remembered.

Torch layout throughout: x (..., in), W (out, in), b (out,) or None, ``y = x Wᵀ + b``; r = rank. Where a paper
writes row vectors or columns as features, the docstring says how its symbols map. ``dropped`` is the input of the
adapter branch when dropout is active (x itself otherwise). Used as the yardstick: keep every line readable
beside the paper, however slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec

Parameters = Mapping[str, Tensor]
Forward = Callable[[Tensor, Tensor, Tensor | None, Parameters, AdapterSpec, Tensor], Tensor]

# PEFT's guard on the two norms of DeLoRA; the paper has none (REFERENCE: DeloraLayer._compute_delta).
DELORA_CLAMP = 1e-4


def linear(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """The base layer, ``x Wᵀ + b``."""
    y = x @ W.mT
    return y if b is None else y + b


def scale(spec: AdapterSpec) -> float:
    """``α / r`` (LoRA §4.1, below Eq. (3))."""
    return spec.alpha / spec.rank


def lora(x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor) -> Tensor:
    """LoRA Eq. (3): ``h = W₀x + (α/r) B A x``, with A (r, in) and B (out, r).

    PiSSA Eq. (5) is the same function of the residual: ``Y = X (W_res + A B)`` in the paper's row-vector
    convention, so its A is our Bᵀ's partner: ``A_paper = A.T`` (in, r), ``B_paper = B.T`` (r, out).
    """
    return linear(x, W, b) + scale(spec) * (dropped @ p["A"].mT @ p["B"].mT)


def pissa(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    """PiSSA Eq. (5) on the residual weight ``p["W"]`` of Eq. (4); the W that is passed is not used."""
    return lora(x, p["W"], b, p, spec, dropped)


def dora(x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor) -> Tensor:
    """DoRA Eq. (5), ``W' = m (W₀ + BA) / ‖W₀ + BA‖_c``, the norm a constant under differentiation (§4.3, Eq. (11)).

    One norm per output feature (a row of W): what both codes compute; the paper's ‖·‖_c over columns of
    W ∈ R^{d×k} read literally would be one per input. Dropout: the base path keeps x.
    """
    V = W + scale(spec) * (p["B"] @ p["A"])
    g = p["m"] / torch.linalg.vector_norm(V, dim=1).detach()
    base = x @ W.mT
    adapted = (g - 1) * (dropped @ W.mT) + g * scale(spec) * (dropped @ p["A"].mT @ p["B"].mT)
    return base + adapted if b is None else base + b + adapted


def ia3(x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor) -> Tensor:
    """(IA)³ §3.3: ``l ⊙ (W x + b)`` for keys and values; ``W (l ⊙ x) + b`` before the second feed-forward matrix."""
    if spec.feedforward:
        return linear(x * p["l"], W, b)
    return linear(x, W, b) * p["l"]


def reflect(x: Tensor, u: Tensor) -> Tensor:
    """``(I − 2 u uᵀ / ‖u‖²) x`` for every row x of a (..., in) tensor; HRA Eq. (1)."""
    return x - 2 * (x @ u)[..., None] * u / (u @ u)


def hra(x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor) -> Tensor:
    """HRA Eq. (1): ``z = W H₁ H₂ … H_r x``, so H_r meets x first; Gram-Schmidt: ``z = W (I − 2QQᵀ) x``."""
    U = p["U"]
    if spec.gram_schmidt:
        U = gram_schmidt(U)
    for i in reversed(range(U.shape[1])):
        x = reflect(x, U[:, i])
    return linear(x, W, b)


def gram_schmidt(U: Tensor) -> Tensor:
    """Orthonormal columns of U (in, r), first to last, by the modified Gram-Schmidt process (HRA §3.2)."""
    columns: list[Tensor] = []
    for i in range(U.shape[1]):
        u = U[:, i]
        for q in columns:
            u = u - (q @ u) * q
        columns.append(u / torch.linalg.vector_norm(u))
    return torch.stack(columns, dim=1)


def delora(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    """DeLoRA Eq. (8) and (15): ``ΔW = (λ/r) B Ξ A ‖W‖``, ``Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)``.

    ‖W‖ is one norm per input channel (a column of W), captured in ``w_norm``; each norm in Ξ is kept above
    1e-4 as PEFT does, which the paper's random B never needs.
    """
    a = torch.linalg.vector_norm(p["A"], dim=1).clamp(min=DELORA_CLAMP)
    columns = torch.linalg.vector_norm(p["B"], dim=0).clamp(min=DELORA_CLAMP)
    xi = p["lambda"] / spec.rank / (columns * a)
    h = (dropped * p["w_norm"]) @ p["A"].mT
    return linear(x, W, b) + (h * xi) @ p["B"].mT


FORWARD: dict[str, Forward] = {
    "lora": lora,
    "pissa": pissa,
    "dora": dora,
    "ia3": ia3,
    "hra": hra,
    "delora": delora,
}


def principal_factors(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    """PiSSA Eq. (2)-(4) for any α: ``A = √(S_r/s) V_rᵀ``, ``B = U_r √(S_r/s)``, ``W_res = W − s B A``."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = (S[: spec.rank] / scale(spec)).sqrt()
    A, B = root[:, None] * Vh[: spec.rank], U[:, : spec.rank] * root
    return {"A": A, "B": B, "W": W - scale(spec) * (B @ A)}


def effective(
    forward: Forward, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec
) -> tuple[Tensor, Tensor]:
    """``(W', b')`` of the adapted layer as a plain linear one: probe with the identity and with zero."""
    probe = torch.eye(W.shape[1], dtype=W.dtype)
    zero = torch.zeros(1, W.shape[1], dtype=W.dtype)
    bias = forward(zero, W, b, p, spec, zero)[0]
    return (forward(probe, W, b, p, spec, probe) - bias).mT, bias

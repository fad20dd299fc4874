"""HRA (Yuan et al., arXiv 2405.17484v3): a chain of Householder reflections before the frozen weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants.paper import linear, scale
from oracles.variants.record import (
    Binding,
    Call,
    Canonical,
    Mistake,
    Option,
    Parameters,
    Targets,
    Uniform,
    Variant,
    drawn,
    form_of,
)
from oracles.variants.shared_mistakes import common, no_effect, no_gradient
from oracles.variants.shared_parts import base_bias, no_bias, normal, same

if TYPE_CHECKING:
    import peft


def hra(call: Call, do: Any) -> Tensor:
    """HRA Eq. (1): ``z = W H₁ H₂ … H_r x``, so H_r meets x first; Gram-Schmidt: ``z = W (I − 2QQᵀ) x``."""
    U = do.vectors(call.p["U"])
    if do.orthonormal(call.spec):
        U = gram_schmidt(U)
    columns = [U[:, i] for i in do.order(U.shape[1])]
    b = do.bias(call.b)
    if do.on_output:
        y = do.chain(call.x @ call.W.mT, columns, call.spec, do)
        return y if b is None else y + b
    if do.gated:
        return _through_gate(call, do.chain(call.x, columns, call.spec, do), b)
    return linear(do.chain(call.x, columns, call.spec, do), call.W, b)


def reflected_by_all(x: Tensor, columns: Sequence[Tensor], spec: AdapterSpec, do: Any) -> Tensor:
    """x reflected by one column after the other."""
    for u in columns:
        x = reflect(x, u, do.factor(spec), do.square)
    return x


def square(u: Tensor) -> Tensor:
    """‖u‖²."""
    return u @ u


def reflect(x: Tensor, u: Tensor, factor: float = 2, squared: Callable[[Tensor], Any] = square) -> Tensor:
    """``(I − 2 u uᵀ / ‖u‖²) x`` for every row x of a (..., in) tensor; HRA Eq. (1)."""
    return x - factor * (x @ u)[..., None] * u / squared(u)


def gram_schmidt(U: Tensor) -> Tensor:
    """Orthonormal columns of U (in, r), first to last, by the modified Gram-Schmidt process (HRA §3.2)."""
    columns: list[Tensor] = []
    for i in range(U.shape[1]):
        u = U[:, i]
        for q in columns:
            u = u - (q @ u) * q
        columns.append(u / torch.linalg.vector_norm(u))
    return torch.stack(columns, dim=1)


def _last_first(r: int) -> list[int]:
    return list(reversed(range(r)))


def _first_first(r: int) -> list[int]:
    return list(range(r))


def _vectors(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    values = normal(shape, spec, g)
    # In one dimension a vector is one number, and reflections divide by its square.
    return values + values.sign() / 4


def _near_zero(values: Mapping[str, Tensor], spec: AdapterSpec) -> bool:
    """Whether a column of U is so short that I − 2uuᵀ/‖u‖² depends on how it is computed."""
    U = values.get("U")
    if U is None or U.dim() != 2 or U.numel() == 0:
        return False
    norms = torch.linalg.vector_norm(U, dim=0)
    short = (norms > 0) & (norms < 0.02 * norms.max())  # a zero vector is no accident of the draw
    return bool(short.any() or (U.shape[0] == 1 and 0 < norms.max() < 0.02))


def _gram_schmidt(spec: AdapterSpec) -> bool:
    return spec.gram_schmidt


REFLECTIONS = Uniform(
    lambda out, in_, spec: 1 / math.sqrt(max(spec.rank // 2, 1)),
    paired=lambda spec: spec.rank % 2 == 0 and not spec.gram_schmidt,
)
U = Canonical("U", lambda out, in_, spec: (in_, spec.rank), uniform=REFLECTIONS, far=_vectors, factor=True)
TENSORS = (U,)
FORM = form_of(
    hra,
    TENSORS,
    vectors=same,
    orthonormal=_gram_schmidt,
    order=_last_first,
    factor=lambda spec: 2,
    square=square,
    chain=reflected_by_all,
    on_output=False,
    gated=False,
    bias=base_bias,
)


# Wrong ones


def _through_gate(call: Call, x: Tensor, b: Tensor | None) -> Tensor:
    base = call.x @ call.W.mT
    y = base + call.p["gate"] * (x @ call.W.mT - base)
    return y if b is None else y + b


def _unpaired(W: Tensor, spec: AdapterSpec) -> Tensor:
    return (torch.rand(W.shape[1], spec.rank, dtype=torch.float64) * 2 - 1) / math.sqrt(spec.rank)


def _palindrome(W: Tensor, spec: AdapterSpec) -> Tensor:
    right = drawn(U)(W, spec)
    half = right[:, ::2]
    return torch.cat([half, half.flip(1)], dim=1) if spec.rank % 2 == 0 else right


def _unit_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    values = drawn(U)(W, spec)
    return values / torch.linalg.vector_norm(values, dim=0)


def _on_output_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    return drawn(U)(W.mT, spec)


def _at_once(x: Tensor, columns: Sequence[Tensor], spec: AdapterSpec, do: Any) -> Tensor:
    """``(I − 2 Σ u_i u_iᵀ/‖u_i‖²) x``: every reflection sees the same x."""
    return x + sum(reflect(x, u, do.factor(spec), do.square) - x for u in columns)


HRA_EPS = 6e-5  # the llama code's configuration


def _square_with_epsilon(u: Tensor) -> Tensor:
    return u @ u + HRA_EPS


def _llama_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    bound = math.sqrt(6 / spec.rank) * HRA_EPS
    return (torch.rand(W.shape[0], spec.rank, dtype=torch.float64) * 2 - 1) * bound


OUTPUT_SIDE: dict[str, Any] = {"on_output": True, "order": _first_first}
MISTAKES = (
    no_effect("hra"),
    Mistake(
        "hra.reversed",
        "the reflections are multiplied in reverse order, W H_r … H₁",
        "equal to the reference where pairs cancel, and nowhere else; checkpoints give other models",
        {"order": _first_first},
        "multiply W H₁ H₂ … H_r in this order: the last column's reflection meets x first",
    ),
    Mistake(
        "hra.zero_gate",
        "a scalar gate around the reflections starts at zero",
        "the vectors get no gradient on step 0; the layer depends on a parameter that no reference has",
        {"gated": True, "start.gate": lambda W, spec: torch.zeros(1, dtype=W.dtype)},
        "take the gate out: equal pairs of vectors make the chain start at the identity",
        about=frozenset({"roles", "output", "start"}),
    ),
    Mistake(
        "hra.unpaired",
        "the columns of U are drawn independently instead of in equal pairs",
        "the chain is a random rotation at the start: the adapted model is not the base model",
        {"start.U": _unpaired},
        "draw half of the columns and repeat each, u₁ u₁ u₂ u₂",
    ),
    Mistake(
        "hra.palindrome",
        "equal columns are mirrored (u₁ u₂ u₂ u₁) instead of adjacent (u₁ u₁ u₂ u₂)",
        "the identity at the start all the same, but other gradients, and another layout in the checkpoint",
        {"start.U": _palindrome},
        "repeat each column beside itself, u₁ u₁ u₂ u₂",
    ),
    Mistake(
        "hra.projection",
        "I − u uᵀ/‖u‖² in place of I − 2 u uᵀ/‖u‖²: a projection, not a reflection",
        "the chain is singular: directions of the input are deleted",
        {"factor": lambda spec: 1.0},
        "subtract 2 u uᵀ/‖u‖², twice the projection",
    ),
    Mistake(
        "hra.not_normalised",
        "u is not divided by its norm",
        "the factors are not orthogonal: the weight's norm drifts, which the method exists to prevent",
        {"square": lambda u: 1.0},
        "divide u uᵀ by ‖u‖²",
    ),
    Mistake(
        "hra.constant_norm",
        "‖u‖² is detached from the gradient",
        "u's gradient keeps a radial part: its length drifts, which changes the step size and not the function",
        {"square": lambda u: (u @ u).detach()},
        "let the gradient flow through ‖u‖²",
        about=frozenset({"gradient"}),
    ),
    Mistake(
        "hra.epsilon",
        "an epsilon of 6e-5 is added to ‖u‖²",
        "short vectors give no orthogonal factor: the chain shrinks what it should only turn",
        {"square": _square_with_epsilon},
        "divide by ‖u‖² itself, without an epsilon, or say in the docstring that there is one",
        agrees_with="the authors' llama code (`oft_r`, eps = 6e-5)",
        documented=("epsilon", r"eps\b"),
        severity="minor",
    ),
    Mistake(
        "hra.output_side",
        "the reflections act on the output, H_r … H₁ W",
        "another method's parametrisation: U has out rows, and the start and the updates differ",
        {**OUTPUT_SIDE, "start.U": _on_output_start},
        "reflect the input, W H₁ … H_r, or say in the docstring that it is the output",
        agrees_with="the authors' llama code (reflections on the output side)",
        documented=("output[ -]side", "(on|from|to) the left", "left[ -]multipl"),
        severity="minor",
    ),
    Mistake(
        "hra.llama",
        "the reflections act on the output, H_r … H₁ W, with an epsilon, from short vectors that are drawn alone",
        "another method's parametrisation: U has out rows, the start is near the identity and not at it",
        {**OUTPUT_SIDE, "square": _square_with_epsilon, "start.U": _llama_start},
        "reflect the input, W H₁ … H_r, or say in the docstring that it is the output",
        agrees_with="the authors' llama code (reflections on the output side, eps = 6e-5)",
        documented=("output[ -]side", "(on|from|to) the left", "left[ -]multipl", "llama (code|form|layer)"),
        severity="minor",
    ),
    *common("hra"),
    no_gradient("hra"),
    Mistake(
        "hra.bias_dropped",
        "the base bias is lost",
        "every layer with a bias is shifted",
        {"bias": no_bias},
        "add the base layer's bias to the output",
    ),
    Mistake(
        "hra.norm_not_squared",
        "u uᵀ is divided by ‖u‖ instead of ‖u‖²",
        "the factors are orthogonal only for vectors of length one: the weight's norm drifts",
        {"square": lambda u: torch.linalg.vector_norm(u)},
        "divide u uᵀ by ‖u‖², the square of the norm",
    ),
    Mistake(
        "hra.all_at_once",
        "the reflections' changes are added up, I − 2 Σ u_i u_iᵀ/‖u_i‖², instead of multiplied",
        "unless the vectors are orthogonal the result is no rotation: the weight's norm drifts",
        {"chain": _at_once},
        "apply one reflection after the other, each to what the one before has left",
    ),
    Mistake(
        "hra.first_only",
        "only the first reflection is applied",
        "the rank changes nothing, and the chain does not start at the identity",
        {"order": lambda r: [0]},
        "apply all r reflections",
    ),
    Mistake(
        "hra.last_left_out",
        "the last column's reflection is left out",
        "an odd number of reflections is left: the chain does not start at the identity",
        {"order": lambda r: list(reversed(range(r - 1)))},
        "apply all r reflections, the last column's first",
    ),
    Mistake(
        "hra.alpha_scaled",
        "the reflections' change is multiplied by α/r",
        "a method without alpha depends on it, and the factors are not orthogonal",
        {"factor": lambda spec: 2 * scale(spec)},
        "subtract 2 u uᵀ/‖u‖² whatever alpha says",
    ),
    Mistake(
        "hra.unit_start",
        "the columns of U start at length one",
        "the function is the same, but a short vector turns faster: the first steps have another size",
        {"start.U": _unit_start},
        "draw U as kaiming_uniform does and leave its length alone",
    ),
    Mistake(
        "hra.gram_schmidt_always",
        "the columns are made orthonormal whether Gram-Schmidt is asked for or not",
        "equal pairs of vectors cannot be made orthonormal: the start is noise, and the updates are another method's",
        {"orthonormal": lambda spec: True},
        "make the columns orthonormal only where Gram-Schmidt is asked for",
    ),
)


def _config(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.HRAConfig(r=spec.rank, apply_GS=spec.gram_schmidt, target_modules=targets)


def _read(told: Mapping[str, Any]) -> AdapterSpec | None:
    if told["peft_type"] != "HRA":
        return None
    return AdapterSpec("hra", told["r"], gram_schmidt=told["apply_GS"])


def _chained(
    active: Sequence[tuple[Parameters, AdapterSpec]], W: Tensor, b: Tensor | None, x: Tensor
) -> Tensor:
    """W R₁ R₂ … x: the reflections of the adapter that was added last meet x first."""
    identity = torch.eye(W.shape[1], dtype=W.dtype)
    for p, spec in reversed(active):
        x = FORM.forward(x, identity, None, p, spec, x)
    return linear(x, W, b)


LAYER = "hra/layer.py"
VARIANT = Variant(
    id="hra",
    order=5,
    title="HRA",
    paper="arXiv 2405.17484v3",
    equation="y = x (W H₁ H₂ … H_r)ᵀ + b, H_i = I − 2 u_i u_iᵀ / ‖u_i‖²; Gram-Schmidt: y = x (W (I − 2QQᵀ))ᵀ + b",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="chains are multiplied, W R₁ R₂: the adapter that was added last meets x first",
    compose_adapters=_chained,
    peft=Binding(
        _config,
        {"U": "hra_u.default"},
        {
            "shapes": (LAYER, "HRALayer.update_layer"),
            "init": (LAYER, "HRALayer.reset_hra_parameters"),
            "forward": (LAYER, "HRALinear.forward"),
        },
        reads=_read,
        keeps_matrices=True,
    ),
    options=(Option("gram_schmidt", False, mode=True),),
    is_singular=_near_zero,
    starts_at_identity=lambda spec: not spec.gram_schmidt and spec.rank % 2 == 0,
    # Gram-Schmidt of more columns than dimensions divides by rounding noise in every reference.
    in_domain=lambda out, in_, spec: spec.rank <= in_ if spec.gram_schmidt else spec.rank % 2 == 0,
    # No odd rank starts at the identity, with Gram-Schmidt or without.
    may_refuse=lambda spec: spec.rank % 2 == 1,
)

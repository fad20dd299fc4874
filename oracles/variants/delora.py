"""DeLoRA (Bini et al., arXiv 2503.18225v2): normalised rank-one components of a bounded, learned strength."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants.paper import linear
from oracles.variants.record import Binding, Call, Canonical, Mistake, Option, Targets, Variant, form_of
from oracles.variants.shared_mistakes import (
    both_zero,
    branches,
    common,
    dropouts,
    lost_bias,
    more_branches,
    more_dropouts,
    no_effect,
    shape_b,
    starts_of_factors,
)
from oracles.variants.shared_parts import A, B, adding, base_bias, no_bias, normal, same

if TYPE_CHECKING:
    import peft

# PEFT's guard on the two norms; the paper has none (REFERENCE: DeloraLayer._compute_delta).
CLAMP = 1e-4


def delora(call: Call, do: Any) -> Tensor:
    """DeLoRA Eq. (8) and (15): ``ΔW = (λ/r) B Ξ A ‖W‖``, ``Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)``.

    ‖W‖ is one norm per input channel (a column of W), captured in ``w_norm``; each norm in Ξ is kept above
    1e-4 as PEFT does, which the paper's random B never needs.
    """
    strength = call.p["lambda"]
    update = _component(call, call.p["A"], call.p["B"], strength, do)
    if do.copy_strength is not None:  # less a frozen copy of the start
        update = update - _component(
            call, call.p["C"], call.p["D"], do.copy_strength(strength, call.spec), do
        )
    base = linear(do.base_input(call.x), call.W, do.bias(call.b))
    return base + do.branch(call.drop("update", update))


def _component(call: Call, A: Tensor, B: Tensor, strength: Tensor, do: Any) -> Tensor:
    xi = do.strength(do.signed(strength), call.spec) / do.norms(A, B)
    norm, x = do.weight_norm(call.W, call.p), do.adapter_input(call.x)
    if call.place == "delta_w":
        update = x @ call.drop("delta_w", (B * xi) @ (A * norm)).mT
    else:
        h = (call.drop("input", x) * norm) @ A.mT
        update = (call.drop("hidden", h) * xi) @ B.mT
    return update if do.output_norm is None else update * do.output_norm(call.W)


def _both(A: Tensor, B: Tensor) -> Tensor:
    a = torch.linalg.vector_norm(A, dim=1).clamp(min=CLAMP)
    columns = torch.linalg.vector_norm(B, dim=0).clamp(min=CLAMP)
    return columns * a


def _over_rank(strength: Tensor, spec: AdapterSpec) -> Tensor:
    return strength / spec.rank


def _held(W: Tensor, p: Any) -> Tensor:
    return p["w_norm"]


def _strength(shape: tuple[int, ...], spec: AdapterSpec, g: torch.Generator) -> Tensor:
    sign = torch.randint(0, 2, shape, generator=g, dtype=torch.float64) * 2 - 1
    return sign * (torch.rand(shape, generator=g, dtype=torch.float64) * 4 + 2)


TENSORS = (
    A,
    Canonical("B", B.shape, exact=B.exact, far=normal, factor=True),
    Canonical(
        "lambda",
        lambda out, in_, spec: (1,),
        exact=lambda W, spec: torch.full((1,), spec.lambda0, dtype=W.dtype),
        far=_strength,
    ),
    Canonical(
        "w_norm",
        lambda out, in_, spec: (in_,),
        role="buffer",
        exact=lambda W, spec: torch.linalg.vector_norm(W, dim=0),
    ),
)
FORM = form_of(
    delora,
    TENSORS,
    strength=_over_rank,
    signed=same,
    norms=_both,
    weight_norm=_held,
    output_norm=None,
    copy_strength=None,
    bias=base_bias,
    base_input=same,
    adapter_input=same,
    branch=same,
)


def _ones(W: Tensor, p: Any) -> Tensor:
    return torch.ones(W.shape[1], dtype=W.dtype)


def _zero_lambda(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.zeros(1, dtype=W.dtype)


def _random_b(W: Tensor, spec: AdapterSpec) -> Tensor:
    return (torch.rand(shape_b(W, spec), dtype=torch.float64) * 2 - 1) / math.sqrt(spec.rank)


# Frozen copies of the start, which get no slot.
COPIES: dict[str, Any] = {
    "start.B": _random_b,
    "copies": {"C": "A", "D": "B"},
    "hidden": frozenset({"C", "D"}),
    "role.C": "buffer",
    "role.D": "buffer",
}
FROM_THE_START = (
    "frozen cop(y|ies)",
    "cop(y|ies) of the (start|initial)",
    "subtract.{0,40}(start|initial)",
    "(start|initial).{0,40}subtract",
)
NORMALISE = "divide each component by both ‖a_i‖ and ‖b_i‖, rows of A and columns of B"
OVER_RANK = "multiply the update by λ/r"
PER_INPUT = "multiply each input feature by the norm of its column of W (dim=0 of the torch weight)"
MISTAKES = (
    no_effect("delora"),
    Mistake(
        "delora.scalar_norm",
        "the update is scaled by one number, the Frobenius norm of W, instead of one norm per input channel",
        "every input feature is scaled alike; the update is about √in too large and points elsewhere unless all "
        "columns of W have equal norm",
        {"weight_norm": lambda W, p: torch.linalg.matrix_norm(W)},
        PER_INPUT,
    ),
    Mistake(
        "delora.output_norm",
        "one norm per output channel (a row of W) scales the update, instead of one per input channel",
        "the update is weighted along the wrong side of W",
        {"weight_norm": _ones, "output_norm": lambda W: torch.linalg.vector_norm(W, dim=1)},
        PER_INPUT,
    ),
    Mistake(
        "delora.no_norm",
        "the update is not scaled by ‖W‖ at all",
        "the bound λ is absolute instead of relative to the weight: layers of different size are adapted unequally",
        {"weight_norm": _ones},
        PER_INPUT,
    ),
    Mistake(
        "delora.lambda_not_over_rank",
        "λ in place of λ/r",
        "the update's norm can reach r λ: the bound that the method promises does not hold",
        {"strength": lambda strength, spec: strength * 1.0},
        OVER_RANK,
    ),
    Mistake(
        "delora.lambda_over_sqrt_rank",
        "λ/√r in place of λ/r",
        "the update's norm can reach √r λ",
        {"strength": lambda strength, spec: strength / math.sqrt(spec.rank)},
        OVER_RANK,
    ),
    Mistake(
        "delora.alpha_scale",
        "the update is multiplied by α as well",
        "a method whose strength is λ depends on alpha",
        {"strength": lambda strength, spec: strength * spec.alpha / spec.rank},
        "multiply the update by λ/r alone, without alpha",
    ),
    Mistake(
        "delora.joint_norm",
        "B A is divided by its Frobenius norm instead of each component by ‖b_i‖ ‖a_i‖",
        "one component can take the whole bound: the per-rank decoupling is lost",
        {"norms": lambda A, B: torch.linalg.matrix_norm(B @ A).clamp(min=CLAMP)},
        NORMALISE,
    ),
    Mistake(
        "delora.a_normalised_only",
        "only the rows of A are normalised",
        "the update's norm is not bounded by λ",
        {"norms": lambda A, B: torch.linalg.vector_norm(A, dim=1).clamp(min=CLAMP)},
        NORMALISE,
    ),
    Mistake(
        "delora.not_normalised",
        "neither a_i nor b_i is normalised",
        "this is LoRA with a learned scale: no bound, no decoupling",
        {"norms": lambda A, B: torch.ones(A.shape[0], dtype=A.dtype)},
        NORMALISE,
    ),
    Mistake(
        "delora.xi_detached",
        "‖a_i‖ and ‖b_i‖ are detached from the gradient",
        "the gradients keep their radial part: lengths drift and the effective learning rate with them",
        {"norms": lambda A, B: _both(A, B).detach()},
        "let the gradient flow through ‖a_i‖ and ‖b_i‖",
        about=frozenset({"gradient"}),
    ),
    Mistake(
        "delora.norm_as_parameter",
        "w_norm is a trainable parameter instead of a persistent buffer",
        "optimisers, parameter counts and weight decay see it; the norm drifts away from the weight's",
        {"role.w_norm": "parameter"},
        "register w_norm as a persistent buffer",
    ),
    Mistake(
        "delora.norm_not_saved",
        "w_norm is left out of the saved adapter",
        "a checkpoint loaded on another base takes that base's norms: the update is not the one that was trained",
        {"not_saved": frozenset({"w_norm"})},
        "save w_norm with A, B and λ",
    ),
    Mistake(
        "delora.lambda_frozen",
        "λ is not trained: it is no parameter, or one that wants no gradient",
        "the strength stays where the configuration put it",
        {"role.lambda": "buffer"},
        "let λ be a parameter that wants a gradient",
    ),
    Mistake(
        "delora.lambda_zero",
        "λ starts at zero whatever lambda0 says",
        "A and B get no gradient on step 0, and none until λ has moved away from zero",
        {"start.lambda": _zero_lambda},
        "start λ at lambda0",
    ),
    Mistake(
        "delora.lambda_zero_random_b",
        "λ starts at zero whatever lambda0 says, with B drawn like A",
        "A and B get no gradient on step 0, and none until λ has moved away from zero",
        {"start.B": _random_b, "start.lambda": _zero_lambda},
        "start λ at lambda0 and B at zero",
    ),
    Mistake(
        "delora.start_subtracted",
        "B starts at random like A, and the update that this gives at λ₀ is subtracted from the frozen weight",
        "Eq. (9)'s form: the start is the identity all the same, but the function of A, B and λ is another one than "
        "PEFT's",
        {
            "copy_strength": lambda strength, spec: torch.full_like(strength, spec.lambda0),
            **COPIES,
        },
        "start B at zero and leave the weight alone, or say in the docstring that the start is subtracted from it",
        agrees_with="the paper's Eq. (9) (the author's code subtracts it at the λ of now)",
        documented=FROM_THE_START,
        severity="minor",
        about=frozenset({"start", "output"}),
    ),
    Mistake(
        "delora.frozen_copy",
        "B starts at random like A, and a frozen copy of the start is subtracted",
        "the author's form: the start is the identity all the same, but the function of A and B is another one than "
        "PEFT's",
        {
            "copy_strength": lambda strength, spec: strength,
            **COPIES,
        },
        "start B at zero and take the frozen copies out, or say in the docstring that they are subtracted",
        agrees_with="the author's code (A, B drawn alike, frozen copies C and D)",
        documented=FROM_THE_START,
        severity="minor",
        about=frozenset({"start", "output"}),
    ),
    *starts_of_factors("delora", gaussian="minor"),
    *dropouts("delora"),
    *common("delora"),
    lost_bias("delora", {"bias": no_bias}),
    Mistake(
        "delora.b_normalised_only",
        "only the columns of B are normalised",
        "the update's norm is not bounded by λ",
        {"norms": lambda A, B: torch.linalg.vector_norm(B, dim=0).clamp(min=CLAMP)},
        NORMALISE,
    ),
    Mistake(
        "delora.norms_multiplied",
        "the update is multiplied by ‖a_i‖ ‖b_i‖ instead of divided",
        "the update's norm grows with the fourth power of the factors' size",
        {"norms": lambda A, B: 1 / _both(A, B)},
        NORMALISE,
    ),
    Mistake(
        "delora.lambda_clamped",
        "a negative λ is taken to be zero",
        "a strength that has crossed zero switches the adapter off for good: it gets no gradient any more",
        {"signed": lambda strength: strength.clamp(min=0)},
        "multiply by λ as it is, of either sign",
    ),
    Mistake(
        "delora.lambda_absolute",
        "λ is taken without its sign",
        "a checkpoint with a negative λ gives the opposite update",
        {"signed": torch.abs},
        "multiply by λ as it is, of either sign",
    ),
    Mistake(
        "delora.lambda_ignored",
        "the update is scaled by lambda0 of the configuration, whatever λ has become",
        "training λ changes nothing, and a checkpoint's λ is not applied",
        {"strength": lambda strength, spec: strength * 0 + spec.lambda0 / spec.rank},
        "multiply by the parameter λ, which starts at lambda0",
    ),
    Mistake(
        "delora.mean_norm",
        "one number, the mean of the columns' norms, scales the update instead of one norm per input channel",
        "every input feature is scaled alike",
        {"weight_norm": lambda W, p: p["w_norm"].mean()},
        PER_INPUT,
    ),
    both_zero("delora"),
    *branches("delora"),
    *more_dropouts("delora"),
    *more_branches("delora"),
)


def _config(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.DeloraConfig(
        r=spec.rank, delora_lambda=spec.lambda0, module_dropout=spec.dropout, target_modules=targets
    )


def _read(told: Mapping[str, Any]) -> AdapterSpec | None:
    if told["peft_type"] != "DELORA":
        return None
    return AdapterSpec("delora", told["r"], dropout=told["module_dropout"], lambda0=told["delora_lambda"])


LAYER = "delora/layer.py"
VARIANT = Variant(
    id="delora",
    order=6,
    title="DeLoRA",
    paper="arXiv 2503.18225v2",
    equation="y = x Wᵀ + b + (λ/r) (drop(x) ⊙ ‖W‖_col) Aᵀ Ξ Bᵀ, Ξ_ii = 1 / (‖b_i‖ ‖a_i‖)",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="updates add, each with its own λ and norms",
    compose_adapters=adding(FORM),
    peft=Binding(
        _config,
        {
            "A": "delora_A.default",
            "B": "delora_B.default",
            "lambda": "delora_lambda.default",
            "w_norm": "delora_w_norm.default",
        },
        {
            "shapes": (LAYER, "DeloraLayer.update_layer"),
            "init": (LAYER, "DeloraLayer.reset_delora_parameters"),
            "forward": (LAYER, "DeloraLinear.forward"),
        },
        reads=_read,
    ),
    options=(Option("lambda0", 15.0, values=(15.0, 4.0, 0.5)),),
    has_dropout=True,
    guards_norms=True,
)

"""VeRA (Kopiczko et al., arXiv 2310.11454v2): two vectors scale frozen random matrices that all layers share."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    Targets,
    Uniform,
    Variant,
    View,
    form_of,
)
from oracles.variants.shared_mistakes import (
    branches,
    common,
    dropouts,
    lost_bias,
    more_branches,
    more_dropouts,
    shape_a,
    shape_b,
)
from oracles.variants.shared_parts import adding, base_bias, no_bias, same, signed

if TYPE_CHECKING:
    import peft

KEY = Option("projection_prng_key", 0, values=(0, 7), key=True)
D_INITIAL = Option("d_initial", 0.1, values=(0.1, 1.0))


def vera(call: Call, do: Any) -> Tensor:
    """VeRA Eq. (2): ``h = W₀x + Λ_b B Λ_d A x``; A (r, in) and B (out, r) are frozen, b and d trained."""
    A, B = call.p["A"], call.p["B"]
    d, b = do.on_rank(call.p["d"]), do.on_output(call.p["b"])
    base = linear(do.base_input(call.x), call.W, do.bias(call.b, call.p["b"]))
    x = do.adapter_input(call.x)
    if call.place == "delta_w":
        update = x @ call.drop("delta_w", b[:, None] * (B * d) @ A).mT
    else:
        h = call.drop("hidden", call.drop("input", x) @ A.mT)
        update = b * ((d * h) @ B.mT)
    factor = do.factor(call.spec)
    return base + do.branch(call.drop("update", update if factor is None else factor * update))


def _kaiming(t: Tensor, generator: torch.Generator) -> Tensor:
    """U(±√(6/fan_in)), in float32 as PEFT draws it."""
    bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(t.shape[1]))
    return t.uniform_(-bound, bound, generator=generator)


def _matrices(W: Tensor, spec: AdapterSpec) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r), one after the other from the generator of the spec's key."""
    generator = torch.Generator().manual_seed(KEY.of(spec))
    shapes = shape_a(W, spec), shape_b(W, spec)
    A, B = (_kaiming(torch.empty(shape, dtype=torch.float32), generator) for shape in shapes)
    return A.double(), B.double()


def _shared_a(W: Tensor, spec: AdapterSpec) -> Tensor:
    return _matrices(W, spec)[0]


def _shared_b(W: Tensor, spec: AdapterSpec) -> Tensor:
    return _matrices(W, spec)[1]


TENSORS = (
    Canonical(
        "A",
        lambda out, in_, spec: (spec.rank, in_),
        role="buffer",
        uniform=Uniform(lambda out, in_, spec: math.sqrt(6 / in_)),
        drawn_from="spec",
    ),
    Canonical(
        "B",
        lambda out, in_, spec: (out, spec.rank),
        role="buffer",
        uniform=Uniform(lambda out, in_, spec: math.sqrt(6 / spec.rank)),
        drawn_from="spec",
    ),
    Canonical(
        "d",
        lambda out, in_, spec: (spec.rank,),
        exact=lambda W, spec: torch.full((spec.rank,), D_INITIAL.of(spec), dtype=W.dtype),
        far=signed(0.25, 1),
    ),
    Canonical(
        "b",
        lambda out, in_, spec: (out,),
        exact=lambda W, spec: torch.zeros(W.shape[0], dtype=W.dtype),
        far=signed(0.25, 1),
    ),
)
FORM = form_of(
    vera,
    TENSORS,
    on_rank=same,
    on_output=same,
    factor=lambda spec: None,
    bias=base_bias,
    base_input=same,
    adapter_input=same,
    branch=same,
).but(**{"start.A": _shared_a, "start.B": _shared_b})


def _ones(name: int) -> Any:
    return lambda W, spec: torch.ones((spec.rank, W.shape[0])[name], dtype=W.dtype)


def _from_torch(shape: Any) -> Any:
    """The right law, from torch's global generator."""
    return lambda W, spec: _kaiming(
        torch.empty(shape(W, spec), dtype=torch.float32), torch.default_generator
    ).double()


def _smaller(start: Any) -> Any:
    """LoRA's law, kaiming_uniform with a = √5, whose bound is √6 times smaller."""
    return lambda W, spec: start(W, spec) / math.sqrt(6)


AS_THE_KEY = "draw A, then B, from one generator seeded by projection_prng_key"
MISTAKES = (
    Mistake(
        "vera.factors_trained",
        "A and B are trained as well",
        "this is LoRA with two more vectors: the checkpoint is as large as LoRA's, and layers no longer share them",
        {"role.A": "parameter", "role.B": "parameter"},
        "register A and B as buffers: only the vectors b and d are trained",
    ),
    Mistake(
        "vera.d_ones",
        "d starts at one whatever d_initial says",
        "the first steps of b are 1/d_initial times as large: learning rates tuned elsewhere do not carry over",
        {"start.d": _ones(0)},
        "start d at d_initial, 0.1 by default",
    ),
    Mistake(
        "vera.b_ones",
        "b starts at one instead of zero",
        "the adapted model is not the base model before training",
        {"start.b": _ones(1)},
        "start b at zero",
    ),
    Mistake(
        "vera.d_zero",
        "d starts at zero, like b",
        "neither vector ever gets a gradient: nothing trains",
        {"start.d": lambda W, spec: torch.zeros(spec.rank, dtype=W.dtype)},
        "start d at d_initial; only b starts at zero",
    ),
    Mistake(
        "vera.d_ignored",
        "the vector d has no effect: Λ_b B A x",
        "half of what is trained changes nothing, and a checkpoint's d is not applied",
        {"on_rank": torch.ones_like},
        "multiply A x by d, entry by entry, before B",
    ),
    Mistake(
        "vera.b_ignored",
        "the vector b has no effect: B Λ_d A x",
        "the adapter does not start at the identity, and outputs cannot be scaled apart from each other",
        {"on_output": torch.ones_like},
        "multiply the output of B by b, entry by entry",
    ),
    Mistake(
        "vera.bias_scaled",
        "the base bias is multiplied by b",
        "every layer with a bias starts without it",
        {"bias": lambda bias, b: None if bias is None else bias * b},
        "multiply the update alone by b, and add the base layer's bias as it is",
    ),
    Mistake(
        "vera.alpha_scale",
        "the update is multiplied by α/r",
        "a method whose strength is in its vectors depends on alpha and rank",
        {"factor": scale},
        "leave alpha and rank out: Λ_b B Λ_d A x as it is",
    ),
    Mistake(
        "vera.over_rank",
        "the update is divided by the rank",
        "a checkpoint trained elsewhere is applied r times too weak",
        {"factor": lambda spec: 1 / spec.rank},
        "leave the rank out: Λ_b B Λ_d A x as it is",
    ),
    Mistake(
        "vera.global_generator",
        "A and B are drawn from torch's global generator instead of one seeded by the key",
        "layers do not share them, and a checkpoint with the vectors and the key alone gives another model",
        {"start.A": _from_torch(shape_a), "start.B": _from_torch(shape_b)},
        AS_THE_KEY,
    ),
    Mistake(
        "vera.key_ignored",
        "A and B are drawn from a generator with a fixed seed, whatever the key says",
        "a checkpoint of another key would give another model",
        {
            "start.A": lambda W, spec: _shared_a(W, KEY.put(spec, 1)),
            "start.B": lambda W, spec: _shared_b(W, KEY.put(spec, 1)),
        },
        AS_THE_KEY,
    ),
    Mistake(
        "vera.kaiming_of_lora",
        "A and B are drawn with LoRA's bound, √(1/fan_in) instead of √(6/fan_in)",
        "the update starts six times too small: b's first steps are that much smaller",
        {"start.A": _smaller(_shared_a), "start.B": _smaller(_shared_b)},
        "draw A and B as kaiming_uniform does with its default gain, within ±√(6/fan_in)",
    ),
    Mistake(
        "vera.matrices_not_saved",
        "A and B are left out of the saved adapter, and the key with them",
        "where the generator is another, a loaded adapter is another one",
        {"not_saved": frozenset({"A", "B"})},
        "save A and B with the vectors, or the key and a promise of the generator",
    ),
    *dropouts("vera"),
    *common("vera"),
    lost_bias("vera", {"bias": no_bias}),
    *branches("vera"),
    *more_dropouts("vera"),
    *more_branches("vera"),
)


def _config(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.VeraConfig(
        r=spec.rank,
        vera_dropout=spec.dropout,
        d_initial=D_INITIAL.of(spec),
        projection_prng_key=KEY.of(spec),
        target_modules=targets,
    )


def _read(told: Mapping[str, Any]) -> AdapterSpec | None:
    if told["peft_type"] != "VERA":
        return None
    spec = AdapterSpec("vera", told["r"], dropout=told["vera_dropout"])
    return KEY.put(D_INITIAL.put(spec, told["d_initial"]), told["projection_prng_key"])


def _view(name: str, spec: AdapterSpec, layer: Any) -> View:
    """All layers share one pair of matrices, as large as the largest of them; each uses a corner."""
    if name == "A":
        return lambda t: t[:, : layer.in_features]
    return (lambda t: t[: layer.out_features]) if name == "B" else same


LAYER = "vera/layer.py"
VARIANT = Variant(
    id="vera",
    order=7,
    title="VeRA",
    paper="arXiv 2310.11454v2",
    equation="y = x Wᵀ + b_W + b ⊙ ((d ⊙ drop(x) Aᵀ) Bᵀ), A and B frozen, random and shared by all layers",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="updates add; the matrices are those of one key and one rank, which all adapters have in common",
    compose_adapters=adding(FORM),
    peft=Binding(
        _config,
        {
            "A": "vera_A.default",
            "B": "vera_B.default",
            "d": "vera_lambda_d.default",
            "b": "vera_lambda_b.default",
        },
        {
            "shapes": (LAYER, "VeraLayer.update_layer"),
            "init": (LAYER, "VeraLayer.reset_vera_parameters"),
            "forward": (LAYER, "Linear.forward"),
        },
        view=_view,
        reads=_read,
        tables=("TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING",),
    ),
    options=(KEY, D_INITIAL),
    adapters_share=("rank", KEY.name),
    has_dropout=True,
)

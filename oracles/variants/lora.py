"""LoRA (Hu et al., arXiv 2106.09685v2): a low-rank update beside the frozen weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants.paper import linear, scale
from oracles.variants.record import Binding, Call, Mistake, Targets, Variant, form_of
from oracles.variants.shared_mistakes import (
    backward_unscaled,
    both_zero,
    branches,
    common,
    dropouts,
    lost_bias,
    more_branches,
    more_dropouts,
    no_effect,
    own_biases,
    scales,
    starts_of_factors,
)
from oracles.variants.shared_parts import (
    GAUSSIAN_A,
    RSLORA,
    B,
    adding,
    base_bias,
    no_bias,
    nothing_of_its_own,
    same,
)

if TYPE_CHECKING:
    import peft


def lora(call: Call, do: Any) -> Tensor:
    """LoRA Eq. (3): ``h = W₀x + (α/r) B A x``, with A (r, in) and B (out, r).

    PiSSA Eq. (5) is the same function of the residual: ``Y = X (W_res + A B)`` in the paper's row-vector
    convention, so its A is our Bᵀ's partner: ``A_paper = A.T`` (in, r), ``B_paper = B.T`` (r, out).
    """
    A, B, s = call.p["A"], call.p["B"], do.scale(call.spec)
    base = linear(do.base_input(call.x), call.W, do.bias(call.b, s))
    x = do.adapter_input(call.x)
    if call.place == "delta_w":
        product = x @ call.drop("delta_w", B @ A).mT
    else:
        product = call.drop("hidden", call.drop("input", x) @ A.mT) @ B.mT
    update = do.scaled(product + do.own(call.p, s), s)
    return base + do.branch(call.drop("update", update))


def times(product: Tensor, s: float) -> Tensor:
    """(α/r) · product."""
    return s * product


PARTS: dict[str, Any] = {
    "scale": scale,
    "scaled": times,
    "bias": base_bias,
    "base_input": same,
    "adapter_input": same,
    "branch": same,
    "own": nothing_of_its_own,
}
TENSORS = (GAUSSIAN_A, B)
FORM = form_of(lora, TENSORS, **PARTS)

MISTAKES = (
    no_effect("lora"),
    *scales("lora"),
    *starts_of_factors("lora", "LoRA paper §4.1 (random Gaussian for A)", "minor"),
    Mistake(
        "lora.bias_scaled",
        "the base bias is multiplied by α/r",
        "the adapted layer differs from the base by a constant from the first step on",
        {"bias": lambda b, s: None if b is None else b * s},
        "multiply the low-rank product alone by α/r, not the bias",
    ),
    lost_bias("lora", {"bias": no_bias}),
    *dropouts("lora"),
    *common("lora"),
    both_zero("lora"),
    *branches("lora"),
    *more_dropouts("lora"),
    *more_branches("lora"),
    backward_unscaled("lora"),
    *own_biases("lora", "PEFT's `lora_bias=True`, off by default: a trained bias in B that starts at zero"),
)


def config(spec: AdapterSpec, targets: Targets, **more: Any) -> peft.PeftConfig:
    """PEFT's LoraConfig, also for the methods that are an option of it."""
    import peft

    return peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        target_modules=targets,
        **more,
    )


def _kind(told: Mapping[str, Any]) -> str:
    """The method that a LoraConfig asks for."""
    if told.get("use_dora"):
        return "dora"
    return "pissa" if str(told.get("init_lora_weights", "")).startswith("pissa") else "lora"


def reads(variant: str) -> Callable[[Mapping[str, Any]], AdapterSpec | None]:
    """The reader of a LoraConfig, for one of the methods that are an option of it."""

    def read(told: Mapping[str, Any]) -> AdapterSpec | None:
        if told["peft_type"] != "LORA" or _kind(told) != variant:
            return None
        rslora = bool(told.get("use_rslora", False))
        return AdapterSpec(variant, told["r"], told["lora_alpha"], told["lora_dropout"], rslora=rslora)

    return read


LAYER = "lora/layer.py"
FACTORS = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}

VARIANT = Variant(
    id="lora",
    order=1,
    title="LoRA",
    paper="arXiv 2106.09685v2",
    equation="y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="updates add: y = x Wᵀ + b + Σ (α_i/r_i) x A_iᵀ B_iᵀ",
    compose_adapters=adding(FORM),
    peft=Binding(
        config,
        FACTORS,
        {
            "shapes": (LAYER, "LoraLayer.update_layer"),
            "init": (LAYER, "LoraLayer.reset_lora_parameters"),
            "forward": (LAYER, "Linear.forward"),
        },
        reads=reads("lora"),
    ),
    options=(RSLORA,),
    has_dropout=True,
    file_without_alpha="microsoft/LoRA, whose lora_state_dict holds no alpha either",
)

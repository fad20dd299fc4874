"""(IA)³ (Liu et al., arXiv 2205.05638v2): a gate on a layer's outputs, or on its inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
    Variant,
    View,
    form_of,
)
from oracles.variants.shared_mistakes import common, detached, no_effect, no_gradient
from oracles.variants.shared_parts import same, signed

if TYPE_CHECKING:
    import peft


def ia3(call: Call, do: Any) -> Tensor:
    """(IA)³ §3.3: ``l ⊙ (W x + b)`` for keys and values; ``W (l ⊙ x) + b`` before the second feed-forward matrix."""
    l, x = do.gate(call.p["l"], call.spec), do.base_input(call.x)
    if do.on_input(call.spec):
        return do.biased_after_input((x * l) @ call.W.mT, call.b, l)
    return do.gated_output(x @ call.W.mT, call.b, l)


def _plus_bias(y: Tensor, b: Tensor | None, l: Tensor) -> Tensor:
    return y if b is None else y + b


def _gated(y: Tensor, b: Tensor | None, l: Tensor) -> Tensor:
    return _plus_bias(y, b, l) * l


def _bias_alone(y: Tensor, b: Tensor | None, l: Tensor) -> Tensor:
    return _plus_bias(y * l, b, l)


def _on_input(spec: AdapterSpec) -> bool:
    return spec.feedforward


def _constant(value: float, side: int = 0) -> Any:
    """A start of that value, of the length of the right side, or of the other one."""
    return lambda W, spec: torch.full((W.shape[int(spec.feedforward) ^ side],), value, dtype=W.dtype)


def _noisy_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    return 1 + 0.02 * torch.randn(W.shape[int(spec.feedforward)], dtype=torch.float64)


TENSORS = (
    Canonical(
        "l",
        lambda out, in_, spec: (in_ if spec.feedforward else out,),
        exact=_constant(1.0),
        far=signed(0.25, 2),
    ),
)
FORM = form_of(
    ia3,
    TENSORS,
    gate=same,
    on_input=_on_input,
    gated_output=_gated,
    biased_after_input=_plus_bias,
    base_input=same,
)


def _gated_by_mean(y: Tensor, b: Tensor | None, l: Tensor) -> Tensor:
    return y * l if b is None else y * l + b * l.mean()


MISTAKES = (
    no_effect("ia3"),
    Mistake(
        "ia3.wrong_side",
        "the gate is on the other side: the input where the output is to be gated, and the reverse",
        "another set of features is rescaled; a checkpoint does not even have the shape",
        {"on_input": lambda spec: not spec.feedforward, "start.l": _constant(1.0, side=1)},
        "gate the output, one entry per output feature; the input of feed-forward layers only",
    ),
    Mistake(
        "ia3.bias_not_gated",
        "the bias is added after the gate instead of being gated with the output",
        "layers with a bias differ from PEFT and from the authors' own gated-output path",
        {"gated_output": _bias_alone},
        "multiply the whole output x Wᵀ + b by the gate, the bias included",
        agrees_with="t-few's general path (`LoRALayer` forward with a low-rank part), which leaves the bias alone",
        documented=("bias.{0,30}(not|n't|un)\\W*(gated|scaled)", "without (the )?bias"),
        severity="major",
    ),
    Mistake(
        "ia3.bias_gated_by_mean",
        "the bias is multiplied by the gate's mean",
        "layers with a bias are shifted",
        {
            "gated_output": _gated_by_mean,
            "biased_after_input": lambda y, b, l: y if b is None else y + b * l.mean(),
        },
        "multiply each entry of x Wᵀ + b by its own entry of the gate",
    ),
    Mistake(
        "ia3.one_plus_gate",
        "the layer is multiplied by 1 + l, and l starts at zero",
        "the function can be the same, but the parameter is not: weight decay and checkpoints mean something else",
        {"gate": lambda l, spec: 1 + l, "start.l": _constant(0.0)},
        "store the gate itself, started at one, and multiply by it",
    ),
    Mistake(
        "ia3.zero_start",
        "the gate starts at zero",
        "the layer is switched off until training opens it",
        {"start.l": _constant(0.0)},
        "start the gate at one",
    ),
    Mistake(
        "ia3.scaled_gate",
        "the gate's distance from one is multiplied by α/r",
        "a method without alpha or rank depends on both",
        {"gate": lambda l, spec: 1 + (l - 1) * scale(spec)},
        "multiply by the gate itself, without alpha and rank",
    ),
    *common("ia3"),
    no_gradient("ia3"),
    Mistake(
        "ia3.bias_dropped",
        "the base bias is lost",
        "every layer with a bias is shifted",
        {"gated_output": lambda y, b, l: y * l, "biased_after_input": lambda y, b, l: y},
        "add the base layer's bias before the output is gated",
    ),
    Mistake(
        "ia3.gate_clamped",
        "negative entries of the gate are taken to be zero",
        "a feature whose gate has crossed zero is switched off and gets no gradient any more",
        {"gate": lambda l, spec: l.clamp(min=0)},
        "multiply by the gate as it is, of either sign",
    ),
    Mistake(
        "ia3.gate_absolute",
        "the gate is taken without its sign",
        "a checkpoint with a negative entry gives the feature of the opposite sign",
        {"gate": lambda l, spec: l.abs()},
        "multiply by the gate as it is, of either sign",
    ),
    Mistake(
        "ia3.gate_exponential",
        "the layer is multiplied by exp(l), and l starts at zero",
        "the gate cannot change its sign, and checkpoints mean something else",
        {"gate": lambda l, spec: l.exp(), "start.l": _constant(0.0)},
        "store the gate itself, started at one, and multiply by it",
    ),
    Mistake(
        "ia3.scalar_gate",
        "every feature is multiplied by one number, the gate's mean",
        "features cannot be rescaled apart from each other, which is the method",
        {"gate": lambda l, spec: l.mean().expand_as(l)},
        "multiply each feature by its own entry of the gate",
    ),
    Mistake(
        "ia3.gate_twice",
        "the gate is applied twice",
        "features are rescaled by the square of what was trained elsewhere",
        {"gate": lambda l, spec: l.square()},
        "multiply by the gate once",
    ),
    Mistake(
        "ia3.noisy_start",
        "the gate starts at random values instead of at one",
        "the adapted model is not the base model before training",
        {"start.l": _noisy_start},
        "start every entry of the gate at one",
    ),
    Mistake(
        "ia3.base_path_cut",
        "no gradient goes through the layer to its input",
        "layers below the adapted one get no gradient through it",
        {"base_input": detached},
        "call the base layer with x itself, outside torch.no_grad",
    ),
)


def _config(spec: AdapterSpec, targets: Targets) -> peft.PeftConfig:
    import peft

    return peft.IA3Config(target_modules=targets, feedforward_modules=targets if spec.feedforward else [])


def _view(name: str, spec: AdapterSpec, layer: nn.Module) -> View:
    """PEFT's gate is (out, 1), or (1, in) on feed-forward layers."""
    return _first_row if spec.feedforward else _first_column


def _first_row(tensor: Tensor) -> Tensor:
    return tensor[0]


def _first_column(tensor: Tensor) -> Tensor:
    return tensor[:, 0]


def _sided(layer: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    side = getattr(layer, "is_feedforward", spec.feedforward)
    return dataclasses.replace(spec, feedforward=bool(side))


def _multiplied(
    active: Sequence[tuple[Parameters, AdapterSpec]], W: Tensor, b: Tensor | None, x: Tensor
) -> Tensor:
    if not active:
        return linear(x, W, b)
    gate = math.prod((p["l"] for p, _ in active), start=torch.ones((), dtype=W.dtype))
    return FORM.forward(x, W, b, {"l": gate}, active[0][1], x)


LAYER = "ia3/layer.py"
VARIANT = Variant(
    id="ia3",
    order=4,
    title="(IA)³",
    paper="arXiv 2205.05638v2",
    equation="y = l ⊙ (x Wᵀ + b); feed-forward: y = (x ⊙ l) Wᵀ + b",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="gates multiply: y = (Π l_i) ⊙ (x Wᵀ + b)",
    compose_adapters=_multiplied,
    peft=Binding(
        _config,
        {"l": "ia3_l.default"},
        {
            "shapes": (LAYER, "IA3Layer.update_layer"),
            "init": (LAYER, "IA3Layer.reset_ia3_parameters"),
            "forward": (LAYER, "Linear.forward"),
        },
        view=_view,
        reads=lambda told: AdapterSpec("ia3") if told["peft_type"] == "IA3" else None,
        defaults=("target_modules", "feedforward_modules"),
        sided=_sided,
        tables=(
            "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING",
            "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING",
        ),
    ),
    options=(Option("feedforward", False, mode=True, side=True),),
    has_rank=False,
)

"""(IA)³ in PEFT's format: gates on outputs or inputs, and the vectors that are for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oracles.vectors.draft import Draft, sizes
from oracles.vectors.faults import BIAS, BIASED, CONV1D, FUSED, LAYOUT, NAMES, OTHER, QK, UNBIASED
from oracles.vectors.held import Held
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.refused import change, drop, spoiled
from oracles.vectors.update import Gate, Unchanged

INPUT = "feedforward"  # the gate is on the input
LISTED = "feedforward_modules"


def _updates(a: AdaptedModule) -> Updates:
    """``l ⊙ (W x + b)`` (§3.3), or ``W (l ⊙ x) + b``."""
    gate = a.factors["l"].flatten()
    found: Updates = {a.parameter: Gate(gate, by_columns=(INPUT in a.flags) != (a.kind == "conv1d"))}
    if a.has_bias and INPUT not in a.flags:
        found["bias"] = Gate(gate)
    return found


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    gates = {n: u for n, u in a.updates().items() if isinstance(u, Gate)}
    one_plus: Updates = {n: Gate(u.l + 1, u.by_columns) for n, u in gates.items()}
    yield Reading("ia3.one_plus", "the gate is 1 + l", one_plus)
    inverse: Updates = {n: Gate(1 / u.l, u.by_columns) for n, u in gates.items()}
    yield Reading("ia3.divided", "the weight is divided by the gate", inverse)
    if a.has_bias and INPUT not in a.flags:
        yield a.read_as("ia3.bias_not_gated", "the bias is not gated", Unchanged(), "bias")


def _is_inner(config: Mapping[str, Any], module: str) -> bool:
    """Whether the gate is on the input. PEFT's own rule, an ending without regard to the dot."""
    listed = config.get(LISTED) or ()
    if isinstance(listed, str):
        return re.fullmatch(listed, module) is not None
    return any(module.endswith(name) for name in listed)


def _read(held: Held) -> AdaptedModule:
    held.expect_factors({"l"})
    inner, shape = _is_inner(held.config, held.module), held.shape
    if held.kernel:
        kind = "conv2d"
        held.expect_shape("l", (1, shape[1] if inner else shape[0], *(1,) * len(held.kernel)))
    else:
        held.expect_shape("l", *((1, n) if inner else (n, 1) for n in dict.fromkeys(shape)))
        kind = _layout(held, inner)
    return AdaptedModule(
        held.module,
        METHOD,
        kind,
        {"l": held.factors["l"].flatten()},
        has_bias=held.has_bias,
        flags=frozenset({INPUT} if inner else ()),
        replaced=held.whole,
    )


def _layout(held: Held, inner: bool) -> str:
    """Either layout: the gate's own length says which, the flag where the weight is square."""
    if held.shape[0] == held.shape[1]:
        return "conv1d" if held.fan_in_fan_out else "linear"
    return "linear" if held.factors["l"].numel() == held.shape[1 if inner else 0] else "conv1d"


def _oddities(factors: Mapping[str, Tensor]) -> Iterator[str]:
    if "l" in factors and bool((factors["l"] == 1).all()):
        yield "l = 1: the gate changes nothing"


METHOD: Method = Method(
    "ia3",
    "IA3",
    {r"ia3_l(\.\w+)?": "l"},
    updates=_updates,
    readings=(_readings,),
    read=_read,
    has_rank=False,
    oddities=_oddities,
)


def ia3(draft: Draft, modules: Sequence[str], feedforward: Sequence[str] = (), **more: Any) -> Draft:
    """Gates; those of ``feedforward`` on the input."""
    for name in modules:
        layer, inner = draft.layer(name), name in feedforward
        n = sizes(layer)[0 if inner else 1]
        gate = draft.draw(name, "l", n, low=16, high=120)
        flags = frozenset({INPUT} if inner else ())
        biased = bool(layer.get("bias"))
        draft.modules.append(
            AdaptedModule(name, METHOD, layer["kind"], {"l": gate}, has_bias=biased, flags=flags)
        )
        shape = (1, n, 1, 1) if layer["kind"] == "conv2d" else (1, n) if inner else (n, 1)
        draft.put(name, "ia3_l", gate.reshape(shape))
    own = {LISTED: list(feedforward), "fan_in_fan_out": False}
    own |= {"inference_mode": True, "init_ia3_weights": True}
    return draft.finish(METHOD.peft_type, more.pop("targets", list(modules)), **{**own, **more})


MUST = ("ia3.one_plus", "ia3.divided")


def _equation() -> Iterator[Draft]:
    yield ia3(Draft("ia3.output", "mlp", OTHER, MUST), UNBIASED)
    yield ia3(Draft("ia3.output_bias", "mlp", BIAS, ("ia3.bias_not_gated", *MUST)), BIASED)
    yield ia3(Draft("ia3.input", "mlp", OTHER, MUST), QK, QK)
    yield ia3(Draft("ia3.both_sides", "mlp", OTHER, MUST), QK, QK[:1])
    by_suffix = {LISTED: ["q_proj"], "targets": ["q_proj", "k_proj"]}
    yield ia3(Draft("ia3.input_by_suffix", "mlp", NAMES, MUST), QK, BIASED, **by_suffix)
    yield ia3(Draft("ia3.conv1d.output", "gpt", LAYOUT, MUST), CONV1D, fan_in_fan_out=True)
    yield ia3(Draft("ia3.conv1d.input", "gpt", LAYOUT, MUST), CONV1D, CONV1D[1:], fan_in_fan_out=True)
    kernels = ["conv", "wide"]
    yield ia3(Draft("ia3.conv2d.output", "conv", LAYOUT, MUST), kernels)
    yield ia3(Draft("ia3.conv2d.input", "conv", LAYOUT, MUST), kernels, kernels)
    yield ia3(Draft("ia3.fused", "fused", FUSED, MUST), ["attn.qkv_proj", "mlp.down_proj"], ["mlp.down_proj"])


def _refused() -> Iterator[Draft]:
    make = lambda draft: ia3(draft, QK)  # noqa: E731
    why = "the gate is on the output, its shape is the input's"
    yield spoiled("ia3_other_side", why, change("ia3_l", lambda l: torch.ones(1, 5)), make)
    yield spoiled("ia3_missing", "a gate is missing", drop("ia3_l"), make)


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = lambda draft, modules: ia3(draft, modules, modules[1:2])  # noqa: E731
WORD = "ia3_l"
VECTORS = {"equation": _equation, "refused": _refused}

"""LoRA in PEFT's format: what its tensors mean, how they are written and read, and the vectors that are for it.

The methods that are an option of PEFT's LoraConfig are made from the same functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft, of_pattern, saved, sizes
from oracles.vectors.factor_readings import biases, layouts, scaled, transposed
from oracles.vectors.faults import (
    BIAS,
    BIASED,
    CONV1D,
    DTYPE,
    EXPERTS,
    FUSED,
    LAYOUT,
    PATTERN,
    QK,
    SCALE,
    SHARDS,
    SILENT,
    TIED,
)
from oracles.vectors.held import Held
from oracles.vectors.meaning import AdaptedModule, Method, Updates
from oracles.vectors.two_factors import bias_update, low_rank
from oracles.vectors.unreadable import Unreadable

TYPE, ALPHA = "LORA", "lora_alpha"
ENDINGS = {
    r"lora_A(\.\w+)?\.weight": "A",
    r"lora_B(\.\w+)?\.weight": "B",
    r"lora_B(\.\w+)?\.bias": "bias",
    r"lora_embedding_A(\.\w+)?": "embedding_A",
    r"lora_embedding_B(\.\w+)?": "embedding_B",
    r"lora_magnitude_vector(\.\w+)?": "m",
}
DEFAULTS: Config = {
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "use_dora": False,
    "use_rslora": False,
}


# What it means


def _updates(a: AdaptedModule) -> Updates:
    """``W' = W + s B A`` (LoRA Eq. (3))."""
    return {a.parameter: low_rank(a, a.scale), **bias_update(a, a.scale)}


def scale(held: Held) -> float | None:
    """``α / r``, or ``α / √r`` with rsLoRA."""
    rslora = held.config.get("use_rslora")
    return held.alpha / (math.sqrt(held.rank) if rslora else held.rank) if held.rank else None


# How it is read


def factors_of(held: Held, method: Method, *more: str) -> AdaptedModule:
    """The module's factors, and those of ``more``, in the layout that their shapes say; raises Unreadable."""
    held, is_embedding = _named_alike(held)
    held.expect_factors({"A", "B", *more}, {"bias"} if held.config.get("lora_bias") else set())
    kind = held.stacked or ("embedding" if is_embedding else _kind(held))
    if not held.stacked:
        _check(held, kind)
    if "bias" in held.factors and not held.has_bias:
        raise Unreadable(
            f"{held.module} has no bias in the base, and the adapter adds one: no merge can hold it"
        )
    return AdaptedModule(
        held.module,
        method,
        kind,
        held.factors,
        held.rank,
        held.alpha,
        bool(held.config.get("use_rslora")),
        held.default_rank,
        held.default_alpha,
        has_bias=held.has_bias,
        parameter=held.parameter,
        experts=held.experts,
        replaced=held.whole,
    )


def _named_alike(held: Held) -> tuple[Held, bool]:
    """An embedding's factors under the names of the others', and whether they are an embedding's."""
    prefix = "embedding_"
    factors = {name.removeprefix(prefix): tensor for name, tensor in held.factors.items()}
    keys = {name.removeprefix(prefix): key for name, key in held.keys.items()}
    is_embedding = any(name.startswith(prefix) for name in held.factors)
    return dataclasses.replace(held, factors=factors, keys=keys), is_embedding


def _kind(held: Held) -> str:
    if held.kernel:
        return "conv2d"
    outputs, inputs = held.factors["B"].shape[:1], held.factors["A"].shape[1:2]
    if held.shape[0] == held.shape[1]:
        return "conv1d" if held.fan_in_fan_out else "linear"
    return "conv1d" if (*inputs, *outputs) == held.shape else "linear"


def _check(held: Held, kind: str) -> None:
    shape, r = held.shape, held.rank
    if kind == "conv2d":
        point, outputs = (1,) * len(held.kernel), shape[0]
        wanted = {"A": (r, *shape[1:]), "B": (outputs, r, *point), "m": (1, outputs, *point)}
    else:
        inputs, outputs = shape if kind in ("conv1d", "embedding") else (shape[1], shape[0])
        wanted = {"A": (r, inputs), "B": (outputs, r), "m": (outputs,)}
    wanted["bias"] = (outputs,)
    for name in held.factors:
        held.expect_shape(name, wanted[name])


METHOD: Method = Method(
    "lora",
    TYPE,
    ENDINGS,
    updates=_updates,
    readings=(scaled, transposed, layouts, biases),
    read=lambda held: factors_of(held, METHOD),
    alpha=ALPHA,
    scale=scale,
    takes_parameters=True,
)


# How it is written


def lora(
    draft: Draft,
    modules: Sequence[str],
    rank: int = 3,
    alpha: float = 7,
    *,
    targets: Any = None,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    bias: bool = False,
    dtypes: Mapping[str, torch.dtype] | None = None,
    method: Method = METHOD,
    **more: Any,
) -> Draft:
    """A LoraConfig's adapter on modules named in full; ``ranks`` and ``alphas`` are the file's patterns."""
    ranks, alphas = dict(ranks or {}), dict(alphas or {})
    for name in modules:
        r, scaled_by = int(of_pattern(ranks, name, rank)), of_pattern(alphas, name, alpha)
        layer, factors = draft.layer(name), _drawn(draft, name, r, bias)
        module = AdaptedModule(name, method, layer["kind"], factors, r, scaled_by, rslora, rank, alpha,
                               has_bias=bool(layer.get("bias")), parts=layer_parts(draft, name))  # fmt: skip
        draft.modules.append(module)
        _put(draft, module, dtypes or {})
    own: Config = {"r": rank, ALPHA: alpha, "use_rslora": rslora, "lora_bias": bias}
    own |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    listed = targets if targets is not None else list(modules)
    return draft.finish(TYPE, listed, **{**DEFAULTS, **own, **more})


def layer_parts(draft: Draft, module: str) -> tuple[int, ...]:
    """The rows of each part of a fused projection."""
    if draft.base != "fused":
        return ()
    return {"attn.qkv_proj": (8, 3, 4), "mlp.gate_up_proj": (7, 7)}.get(module, ())


def _drawn(draft: Draft, module: str, r: int, bias: bool) -> dict[str, Tensor]:
    layer = draft.layer(module)
    inputs, outputs = sizes(layer)
    kernel = tuple(layer["kernel"]) if layer["kind"] == "conv2d" else ()
    point = (1, 1) if kernel else ()
    factors = {
        "A": draft.draw(module, "A", r, inputs, *kernel),
        "B": draft.draw(module, "B", outputs, r, *point),
    }
    return {**factors, "bias": draft.draw(module, "bias", outputs)} if bias else factors


def _put(draft: Draft, module: AdaptedModule, dtypes: Mapping[str, torch.dtype]) -> None:
    names = {"A": "lora_A.weight", "B": "lora_B.weight", "bias": "lora_B.bias"}
    if module.kind == "embedding":
        names |= {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    for factor, tensor in module.factors.items():
        draft.put(module.module, names[factor], tensor, dtypes.get(factor))


def experts(draft: Draft, parameters: Sequence[str], rank: int = 2, alpha: float = 5, **more: Any) -> Draft:
    """LoRA on stacked expert parameters of ``mlp.experts``, the first one innermost in the file's names."""
    place = "mlp.experts"
    layer = draft.layer(place)
    chosen = [p for p in layer["parameters"] if p["name"] in parameters]
    for position, parameter in enumerate(chosen):
        E, first, second = parameter["shape"]
        inputs, outputs = (second, first) if layer["layout"] == "out_in" else (first, second)
        A = draft.draw(parameter["name"], "A", rank * E, inputs)
        B = draft.draw(parameter["name"], "B", outputs, rank * E)
        kind, rslora = f"experts_{layer['layout']}", bool(more.get("use_rslora"))
        draft.modules.append(
            AdaptedModule(place, METHOD, kind, {"A": A, "B": B}, rank, alpha, rslora, rank, alpha,
                          parameter=parameter["name"], experts=E)
        )  # fmt: skip
        inner = ".base_layer" * (len(chosen) - 1 - position)
        draft.put(f"{place}{inner}", "lora_A.weight", A)
        draft.put(f"{place}{inner}", "lora_B.weight", B)
    own: Config = {"r": rank, ALPHA: alpha, "target_parameters": [f"{place}.{p}" for p in sorted(parameters)]}
    return draft.finish(TYPE, [], **{**DEFAULTS, **own, **more})


# The vectors that are for it


def _scale() -> Iterator[Draft]:
    must = ("scale.over_root_rank", "scale.alpha", "scale.one")
    for name, rank, alpha in (
        ("alpha_above_rank", 3, 7.0),
        ("alpha_below_rank", 5, 2.0),
        ("alpha_a_fraction", 3, 0.5),
        ("rank_two", 2, 16.0),
        ("rank_above_width", 8, 3.0),
    ):
        yield lora(Draft(f"lora.{name}", "mlp", SCALE, must), QK, rank, alpha)
    yield lora(Draft("lora.rank_one", "mlp", SCALE, ("scale.one",)), QK, 1, 7.0)
    root = ("scale.over_rank", "scale.alpha", "scale.one")
    for name, rank, alpha in (
        ("rank_three", 3, 7.0),
        ("rank_five", 5, 2.0),
        ("rank_two", 2, 16.0),
        ("wide", 8, 3.0),
    ):
        yield lora(Draft(f"rslora.{name}", "mlp", SCALE, root), QK, rank, alpha, rslora=True)
    yield lora(Draft("lora.with_dropout", "mlp", SCALE, must), QK, 3, 7.0, lora_dropout=0.5)
    yield lora(Draft("lora.one_module", "mlp", SILENT, ("not_applied",)), QK[:1], 2, 3.0)


def _patterns() -> Iterator[Draft]:
    rank, alpha = ("pattern.rank",), ("pattern.alpha",)
    q, last = {"q_proj": 5}, {"layers.1.k_proj": 2}
    for name, ranks in (
        ("suffix", q),
        ("full_name", last),
        ("regex", {r"layers\.\d+\.q_proj": 5}),
        ("anchored", {r"^layers\.0\.q_proj": 6}),
        ("first_wins", {"layers.0.q_proj": 4, **q}),
    ):
        yield lora(Draft(f"lora.rank_pattern.{name}", "mlp", PATTERN, rank), QK, 3, 7.0, ranks=ranks)
    for name, alphas in (
        ("suffix", {"k_proj": 2.0}),
        ("full_name", {"layers.0.q_proj": 20.0}),
        ("regex", {r".*\.1\..*_proj": 3.0}),
        ("first_wins", {"layers.1.q_proj": 1.0, "q_proj": 30.0}),
    ):
        yield lora(Draft(f"lora.alpha_pattern.{name}", "mlp", PATTERN, alpha), QK, 3, 7.0, alphas=alphas)
    yield from _both_patterns(q)


def _both_patterns(q: Mapping[str, int]) -> Iterator[Draft]:
    both = ("pattern.rank", "pattern.alpha", "pattern.both")
    for name, rslora in (("plain", False), ("rslora", True)):
        draft = Draft(f"lora.both_patterns.{name}", "mlp", PATTERN, both)
        yield lora(draft, QK, 3, 7.0, ranks=q, alphas={"q_proj": 2.0}, rslora=rslora)
    crossed = Draft("lora.both_patterns.crossed", "mlp", PATTERN, both[:2])
    yield lora(crossed, QK, 3, 7.0, ranks=q, alphas={"k_proj": 2.0})
    for name, given in (("rank", {"ranks": q}), ("alpha", {"alphas": {"q_proj": 2.0}})):
        draft = Draft(f"rslora.{name}_pattern", "mlp", PATTERN, (f"pattern.{name}", "scale.over_rank"))
        yield lora(draft, QK, 3, 7.0, rslora=True, **given)


def _biases() -> Iterator[Draft]:
    must = ("bias.left_out", "bias.unscaled")
    yield lora(Draft("lora.bias", "mlp", BIAS, must), BIASED, 3, 7.0, bias=True)
    yield lora(Draft("rslora.bias", "mlp", BIAS, must), BIASED, 3, 7.0, bias=True, rslora=True)
    yield lora(Draft("lora.bias.conv2d", "conv", BIAS, must), ["conv", "wide"], 3, 7.0, bias=True)
    yield lora(Draft("lora.bias.fused", "fused", BIAS, must), ["attn.qkv_proj"], 3, 7.0, bias=True)
    for name, modules in (("lora_only", BIASED), ("all", (*BIASED, "head"))):
        draft = Draft(f"lora.trained_bias.{name}", "mlp", BIAS, ("saved.left_out",))
        lora(draft, BIASED, 3, 7.0)
        draft.config["bias"] = name
        for module in modules:
            bias = draft.draw(module, "trained bias", sizes(draft.layer(module))[1])
            saved(draft, module, {"bias": bias}, "base_layer." if module in BIASED else "")
        yield draft


TRANSPOSED = ("layout.transposed", "scale.over_root_rank")
TRANSPOSED_ROOT = ("layout.transposed", "scale.over_rank")


def _conv1d() -> Iterator[Draft]:
    for name, more in (
        ("plain", {}),
        ("rank_pattern", {"ranks": {"c_attn": 2}}),
        ("alpha_pattern", {"alphas": {"c_proj": 2.0}}),
    ):
        draft = Draft(f"lora.conv1d.{name}", "gpt", LAYOUT, TRANSPOSED)
        yield lora(draft, CONV1D, 3, 7.0, fan_in_fan_out=True, **more)
    root = Draft("rslora.conv1d", "gpt", LAYOUT, TRANSPOSED_ROOT)
    yield lora(root, CONV1D, 3, 7.0, fan_in_fan_out=True, rslora=True)
    yield lora(Draft("lora.conv1d.flag_off", "gpt", LAYOUT, TRANSPOSED), CONV1D, 3, 7.0)
    yield lora(Draft("lora.linear.flag_on", "mlp", LAYOUT, TRANSPOSED), QK, 3, 7.0, fan_in_fan_out=True)


def _embedding() -> Iterator[Draft]:
    both = ["embed_tokens", "layers.0.up_proj"]
    for name, modules in (("alone", both[:1]), ("with_linear", both)):
        yield lora(Draft(f"lora.embedding.{name}", "language", LAYOUT, TRANSPOSED), modules, 3, 7.0)
    root = Draft("rslora.embedding", "language", LAYOUT, TRANSPOSED_ROOT)
    yield lora(root, both, 3, 7.0, rslora=True)
    pattern = Draft("lora.embedding.rank_pattern", "language", PATTERN, ("pattern.rank",))
    yield lora(pattern, both, 3, 7.0, ranks={"embed_tokens": 5})


def _conv2d() -> Iterator[Draft]:
    kernel = ("layout.channels_last", "scale.over_root_rank")
    for name, modules in (
        ("three_by_three", ["conv"]),
        ("strided", ["wide"]),
        ("all", ["conv", "point", "wide"]),
    ):
        yield lora(Draft(f"lora.conv2d.{name}", "conv", LAYOUT, kernel), modules, 3, 7.0)
    yield lora(Draft("lora.conv2d.one_by_one", "conv", LAYOUT, TRANSPOSED), ["point"], 2, 7.0)
    root = Draft("rslora.conv2d", "conv", LAYOUT, ("scale.over_rank",))
    yield lora(root, ["conv", "point"], 3, 7.0, rslora=True)
    ranked = Draft("lora.conv2d.rank_pattern", "conv", PATTERN, ("pattern.rank",))
    yield lora(ranked, ["conv", "point"], 3, 7.0, ranks={"point": 2})


def _tied() -> Iterator[Draft]:
    for name, rslora in (("lora", False), ("rslora", True)):
        draft = Draft(f"tied.embedding_{name}", "tied", TIED, ("tie.follows",), tied="lm_head.weight")
        yield lora(draft, ["embed_tokens"], 3, 7.0, rslora=rslora)


FUSED_BOTH = ["attn.qkv_proj", "mlp.gate_up_proj"]


def _fused() -> Iterator[Draft]:
    parts = ("fused.first_only", "fused.order", "fused.interleaved")
    yield lora(Draft("fused.qkv", "fused", FUSED, parts), FUSED_BOTH[:1], 3, 7.0)
    yield lora(Draft("fused.gate_up", "fused", FUSED, parts[:2]), FUSED_BOTH[1:], 3, 7.0)
    yield lora(Draft("fused.both", "fused", FUSED, parts), FUSED_BOTH, 3, 7.0)
    root = Draft("fused.rslora", "fused", FUSED, ("fused.first_only", "scale.over_rank"))
    yield lora(root, FUSED_BOTH, 3, 7.0, rslora=True)


def _fused_patterns() -> Iterator[Draft]:
    pattern = Draft("fused.rank_pattern", "fused", FUSED, ("pattern.rank", "fused.order"))
    yield lora(pattern, FUSED_BOTH, 3, 7.0, ranks={"qkv_proj": 5})


def _experts() -> Iterator[Draft]:
    must = ("experts.B_blocks", "experts.A_fast", "experts.reversed", "scale.over_root_rank")
    for layout in ("out_in", "in_out"):
        base = f"experts_{layout}"
        yield experts(Draft(f"experts.{layout}.first", base, EXPERTS, must), ["gate_up_proj"])
        yield experts(Draft(f"experts.{layout}.second", base, EXPERTS, must), ["down_proj"], 3, 4)
        yield experts(Draft(f"experts.{layout}.both", base, EXPERTS, must), ["gate_up_proj", "down_proj"])
        root = ("experts.B_blocks", "scale.over_rank")
        draft = Draft(f"experts.{layout}.rslora", base, EXPERTS, root)
        yield experts(draft, ["gate_up_proj"], 2, 5, use_rslora=True)
        rank_one = Draft(f"experts.{layout}.rank_one", base, EXPERTS, ("experts.reversed", "experts.first"))
        yield experts(rank_one, ["gate_up_proj"], 1, 5)


def _dtypes() -> Iterator[Draft]:
    must = ("scale.over_root_rank", "not_applied")
    half, brain = torch.float16, torch.bfloat16
    for name, base, dtype in (
        ("bf16_base", "mlp_bf16", torch.float32),
        ("fp16_base", "mlp_fp16", torch.float32),
        ("bf16_both", "mlp_bf16", brain),
        ("fp16_both", "mlp_fp16", half),
        ("bf16_adapter", "mlp", brain),
        ("fp16_adapter", "mlp", half),
        ("fp64_adapter", "mlp", torch.float64),
        ("bf16_on_fp16", "mlp_fp16", brain),
    ):
        yield lora(Draft(f"dtype.{name}", base, DTYPE, must, dtype=dtype), QK, 3, 7.0)
    mixed = Draft("dtype.mixed_factors", "mlp", DTYPE, must)
    yield lora(mixed, QK, 3, 7.0, dtypes={"A": brain, "B": torch.float32})


def _shards() -> Iterator[Draft]:
    for name, rslora in (("lora", False), ("rslora", True)):
        draft = Draft(f"shards.{name}", "sharded", SHARDS, ("modules.first_only",))
        yield lora(draft, QK, 3, 7.0, rslora=rslora)


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = lambda draft, modules: lora(draft, modules, 3, 7.0)  # noqa: E731
WORD = "lora_A"
VECTORS = {
    "scale": _scale,
    "patterns": _patterns,
    "biases": _biases,
    "conv1d": _conv1d,
    "embedding": _embedding,
    "conv2d": _conv2d,
    "tied": _tied,
    "fused": _fused,
    "fused patterns": _fused_patterns,
    "experts": _experts,
    "dtypes": _dtypes,
    "shards": _shards,
}

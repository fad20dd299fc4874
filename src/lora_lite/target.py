"""Which layers of a model to adapt."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from .config import AdapterConfig
from .kinds import is_linear, kind_of, never_called
from .variant import Variant

__all__ = ["ALL_LINEAR", "default_feedforward", "default_targets", "find_targets", "matches", "pattern_value"]

ALL_LINEAR = "all-linear"
LINEAR = ("linear", "conv1d")

# Facts of PEFT's tables (https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/constants.py): the
# query and value projections for all but (IA)³.
QV = ("q_proj", "v_proj")
TARGETS: dict[str, tuple[str, ...]] = {
    "bart": QV,
    "bert": ("query", "value"),
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gemma": QV,
    "gemma2": QV,
    "gemma3_text": QV,
    "gpt2": ("c_attn",),
    "gpt_neo": QV,
    "gpt_neox": ("query_key_value",),
    "gptj": QV,
    "llama": QV,
    "mistral": QV,
    "mixtral": QV,
    "mt5": ("q", "v"),
    "opt": QV,
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "qwen2": QV,
    "qwen3": QV,
    "roberta": ("query", "value"),
    "t5": ("q", "v"),
}

# (IA)³: (gated at the output, gated at the input). Qwen and Gemma gate q_proj and not the paper's keys:
# PEFT's choice, kept so that adapters can be exchanged.
QVD = (QV, ("down_proj",))
IA3_TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bart": (QV, ("fc2",)),
    "bert": (("key", "value"), ("output.dense",)),
    "bloom": (("query_key_value",), ("mlp.dense_4h_to_h",)),
    "falcon": (("query_key_value",), ("dense_4h_to_h",)),
    "gemma": QVD,
    "gemma2": QVD,
    "gemma3_text": QVD,
    "gpt2": (("c_attn",), ("mlp.c_proj",)),
    "gpt_neo": (QV, ("c_proj",)),
    "gpt_neox": (("query_key_value",), ("dense_4h_to_h",)),
    "gptj": (QV, ("fc_out",)),
    "llama": (("k_proj", "v_proj"), ("down_proj",)),
    "mistral": (("k_proj", "v_proj"), ("down_proj",)),
    "mixtral": (("k_proj", "v_proj"), ("w2",)),
    "mt5": (("k", "v", "wi_1"), ()),
    "opt": (("q_proj", "k_proj"), ("fc2",)),
    "phi": (QV, ("fc2",)),
    "qwen2": QVD,
    "qwen3": QVD,
    "roberta": (("key", "value"), ("output.dense",)),
    "t5": (("k", "v"), ("wo",)),
}


def model_type(model: nn.Module) -> str | None:
    """The architecture that a transformers model names in its config; None for any other module."""
    config: Any = getattr(model, "config", None)
    found = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return found if isinstance(found, str) else None


def default_targets(kind: str, variant: str) -> tuple[str, ...] | None:
    """The names that ``variant`` adapts in an architecture; None if the tables lack it."""
    if variant != "ia3":
        return TARGETS.get(kind)
    gates = IA3_TARGETS.get(kind)
    return gates and gates[0] + gates[1]


def default_feedforward(kind: str | None) -> tuple[str, ...]:
    """The names that (IA)³ gates at the input in an architecture; empty if the tables lack it."""
    return IA3_TARGETS.get(kind or "", ((), ()))[1]


def matches(name: str, pattern: str | tuple[str, ...]) -> bool:
    """Whether a full name fits: a string is a regular expression for all of it, a list holds endings."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in pattern)


def pattern_value(name: str, config: AdapterConfig, field: str) -> Any:
    """The layer's own value of ``field``, from the first entry of its pattern that fits an ending; None for none."""
    pairs = getattr(config, config.patterns[field])
    return next((value for key, value in pairs if re.fullmatch(rf"(.*\.)?({key})", name)), None)


def block_index(name: str) -> int | None:
    """The first number in a dotted name: ``model.layers.3.mlp.experts.0.w2`` is in block 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def layers_of_kind(model: nn.Module, kinds: Collection[str]) -> dict[str, nn.Module]:
    """The layers of these kinds by name; a shared one once, under its first name, and none inside an adapter."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, Variant):
            inside += (name + ".",)
        kind = kind_of(module)
        if kind is not None and kind.name in kinds and not name.startswith(inside):
            found[name] = module
    return found


def output_head(model: nn.Module) -> nn.Module | None:
    """The language-model head of a transformers model, if it has one."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def resolve(model: nn.Module, config: AdapterConfig) -> str | tuple[str, ...]:
    """The pattern to match. Raises ValueError if none is given and the architecture is unknown."""
    if config.targets is not None:
        return config.targets
    kind = model_type(model)
    found = default_targets(kind, config.variant) if kind else None
    if found is None:
        what = f"the model type {kind!r}" if kind else f"a {type(model).__name__} (no config.model_type)"
        raise ValueError(f"no default targets for {what}; give targets=[...], a list of layer names")
    return found


def find_targets(
    model: nn.Module, config: AdapterConfig, kinds: Collection[str] = LINEAR
) -> dict[str, nn.Module]:
    """Name -> layer for every layer that ``config`` selects, in the model's order.

    ``kinds``: what the variant can sit on; embeddings and convolutions only where ``targets`` names them. Raises
    ValueError if nothing matches, or if a name or block that was asked for matches no layer.
    """
    if kind_of(model) is not None:
        check_single(config)
        return {"": model}
    candidates = layers_of_kind(model, kinds)
    pattern = resolve(model, config)
    chosen = select(model, candidates, pattern)
    if config.targets is not None and isinstance(pattern, tuple):
        check_each(pattern, chosen)
    kept = {name: layer for name, layer in chosen.items() if passes(name, config)}
    if not kept:
        raise ValueError(no_match(pattern, config, list(layers_of_kind(model, LINEAR))))
    check_blocks(config, kept)
    return kept


def check_single(config: AdapterConfig) -> None:
    """Raises ValueError for a choice of layers in a model that is itself one."""
    if config.targets not in (None, ALL_LINEAR):
        given = list(config.targets) if isinstance(config.targets, tuple) else config.targets
        raise ValueError(
            f"targets={given!r} match nothing: the model is itself one layer, which needs no targets"
        )


def check_blocks(config: AdapterConfig, kept: dict[str, nn.Module]) -> None:
    """Raises ValueError for a block that was asked for and in which nothing is adapted."""
    if missing := sorted(set(config.layers or ()) - {block_index(name) for name in kept}):
        raise ValueError(f"layers={list(config.layers or ())}: no layer is matched in block {missing[0]}")


def select(
    model: nn.Module, candidates: dict[str, nn.Module], pattern: str | tuple[str, ...]
) -> dict[str, nn.Module]:
    """The candidates that fit the pattern; "all-linear" leaves out what cannot be meant."""
    if pattern == ALL_LINEAR:
        head, linear = output_head(model), {n: m for n, m in candidates.items() if is_linear(m)}
        return {n: layer for n, layer in linear.items() if layer is not head and not never_called(layer)}
    return {name: layer for name, layer in candidates.items() if matches(name, pattern)}


def passes(name: str, config: AdapterConfig) -> bool:
    """Whether a matched name survives ``exclude`` and ``layers``."""
    if config.exclude is not None and matches(name, config.exclude):
        return False
    return config.layers is None or block_index(name) in config.layers


def check_each(asked: tuple[str, ...], chosen: dict[str, nn.Module]) -> None:
    """Raises ValueError for a name that was asked for and matched nothing: most likely a typing error."""
    missing = [ending for ending in asked if not any(matches(name, (ending,)) for name in chosen)]
    if missing and chosen:
        raise ValueError(f"targets {missing} match no linear layer (the others of {list(asked)} do)")


def no_match(pattern: str | tuple[str, ...], config: AdapterConfig, available: list[str]) -> str:
    """The sentence for an empty selection."""
    given = f"targets={list(pattern) if isinstance(pattern, tuple) else pattern!r}"
    if config.exclude is not None:
        given += f", exclude={config.exclude!r}"
    if config.layers is not None:
        given += f", layers={list(config.layers)}"
    some = ", ".join(available[:6]) + (", ..." if len(available) > 6 else "")
    return f"no linear layer matches {given}; the model has {some or 'no linear layer at all'}"

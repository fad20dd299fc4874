# /// script
# requires-python = ">=3.11"
# dependencies = ["adapters==1.3.0", "torch==2.13.0", "numpy"]
# ///
"""AdapterHub's adapters 1.3.0: LoRA, DoRA and (IA)³ through a model's own methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import adapters
from adapters.methods import lora
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

PLACES = adapters.AdapterModelInterface(
    adapter_methods=["lora"], model_embeddings="embeddings", model_layers="layers", layer_self_attn="attn",
    layer_cross_attn=None, attn_q_proj="q", attn_k_proj="k", attn_v_proj="v", attn_o_proj="o",
    layer_intermediate_proj="up", layer_output_proj="down",
)  # fmt: skip
ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
SYMBOLS = {"shapes": "__init__", "init": "__init__", "scale": "__init__", "dropout": "forward"}


class OneLayer(PreTrainedModel):
    """The smallest model that the library's plugin interface describes: its query projection is the base layer."""

    config_class = PretrainedConfig
    base_model_prefix = "blocks"  # which load_adapter looks for in front of names

    def __init__(self, base: nn.Module) -> None:
        super().__init__(PretrainedConfig(hidden_size=1))
        attention = nn.ModuleDict({"q": base, **{name: nn.Linear(1, 1) for name in "kvo"}})
        block = nn.ModuleDict({"attn": attention, "up": nn.Linear(1, 1), "down": nn.Linear(1, 1)})
        self.embeddings, self.layers = nn.Embedding(1, 1), nn.ModuleList([block])

    def get_input_embeddings(self) -> nn.Module:
        """What ``adapters.init`` asks for."""
        return self.embeddings


class Adapters(Implementation):
    """``add_adapter`` and ``train_adapter`` on the layer, as the query projection of a model's only block."""

    name = "adapters"
    version = adapters.__version__
    variants = frozenset({"lora", "dora", "ia3"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """It has no rsLoRA, and (IA)³ on the output alone."""
        return dataclasses.replace(spec, rslora=False, feedforward=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The only layer of a model, adapted."""
        model, mode = OneLayer(base), base.training
        adapters.init(model, interface=PLACES)
        _add(model, "default", _config(spec, base, attn_matrices=["q"], intermediate_lora=False))
        model.train(mode)
        return _adapted(_layer(model), "default", model)

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        """``add_adapter`` alone: nothing is activated."""
        layer: Any = adapted.module
        model = layer._audited_model
        model.add_adapter(name, config=_config(spec, layer, attn_matrices=["q"], intermediate_lora=False))
        return _adapted(layer, name, model)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        """``train_adapter``, which activates it and freezes the others; none: ``set_active_adapters``."""
        if len(names) > 1:
            raise Unsupported("adapters stacks or averages several adapters; it does not add them up")
        model = _model(adapted)
        mode = model.training
        model.train_adapter(names[0]) if names else model.set_active_adapters(None)
        model.train(mode)

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        """``delete_adapter``."""
        _model(adapted).delete_adapter(name)

    def merge_in_place(self, adapted: Adapted) -> None:
        """``merge_adapter`` of the one that is active."""
        model = _model(adapted)
        for name in model.active_adapters.flatten() if model.active_adapters else ():
            model.merge_adapter(name)

    def unmerge(self, adapted: Adapted) -> None:
        """``reset_adapter``."""
        _model(adapted).reset_adapter()

    def save(self, adapted: Adapted, path: Path) -> None:
        """``save_adapter``, as safetensors."""
        held = {id(slot.tensor) for slot in adapted.slots.values()}
        loras: Any = adapted.module.loras
        name = next(n for n, m in loras.items() if any(id(p) in held for p in m.parameters()))
        _model(adapted).save_adapter(str(path), name, use_safetensors=True)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        """``load_adapter`` into a fresh model, and made to train."""
        model, mode = OneLayer(base), base.training
        adapters.init(model, interface=PLACES)
        model.load_adapter(str(path), load_as="default", use_safetensors=True)
        model.train_adapter("default")
        model.train(mode)
        return _adapted(_layer(model), "default", model)

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """``adapters.init`` and the configuration's own targets, or projections of the attention by name."""
        if not set(targets or ()) <= ATTENTION.keys():
            raise Unsupported(f"adapters' configurations name {', '.join(ATTENTION)}, not {targets}")
        places: dict[str, Any] = {}
        if targets is not None:
            places = {"attn_matrices": [ATTENTION[t] for t in targets], "intermediate_lora": False}
        mode = model.training
        adapters.init(model)
        _add(
            model,
            "default",
            _config(spec, next(m for m in model.modules() if isinstance(m, nn.Linear)), **places),
        )
        model.train(mode)
        layers = {n: m for n, m in model.named_modules() if "default" in getattr(m, "loras", ())}
        return {name: _adapted(layer, "default", model) for name, layer in layers.items()}

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """``methods/lora.py``."""
        file, kind = Path(lora.__file__), "IA3" if variant == "ia3" else "LoRA"
        symbols = {"forward": "LoRALinear.forward", "merge": "LoRALinear.merge_adapter"}
        symbols |= {where: f"{kind}.{method}" for where, method in SYMBOLS.items()}
        return (file, symbols[aspect]) if aspect in symbols else None


def _config(spec: AdapterSpec, layer: Any, **places: Any) -> Any:
    """The library's configuration, its tensors in the layer's dtype."""
    if spec.rslora or spec.feedforward:
        raise Unsupported("adapters has no rsLoRA, and no gate on the input of a layer")
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    if spec.variant == "ia3":
        return adapters.IA3Config(dtype=dtype, **places)
    sizes = {"r": spec.rank, "alpha": spec.alpha, "dropout": spec.dropout}
    return adapters.LoRAConfig(use_dora=spec.variant == "dora", dtype=dtype, **sizes, **places)


def _add(model: Any, name: str, config: Any) -> None:
    model.add_adapter(name, config=config)
    model.train_adapter(name)
    for parameter_name, parameter in model.named_parameters():
        if f".{name}." not in parameter_name:  # a model's head trains along, which is no part of the method
            parameter.requires_grad_(False)


def _layer(model: Any) -> Any:
    return model.layers[0].attn.q


def _model(adapted: Adapted) -> Any:
    return adapted.module._audited_model


def _adapted(layer: Any, name: str, model: Any) -> Adapted:
    own, slots = layer.loras[name], {}
    if isinstance(own, lora.IA3):
        slots["l"] = Slot(own.lora_B, _column)
    else:
        slots |= {"A": Slot(own.lora_A), "B": Slot(own.lora_B)}
        if own.use_dora:
            slots["m"] = Slot(own.m.weight, _column)
    object.__setattr__(layer, "_audited_model", model)
    return Adapted(layer, slots)


def _column(tensor: Tensor) -> Tensor:
    return tensor[:, 0]

# /// script
# requires-python = "==3.11.*"
# dependencies = ["lycoris-lora==4.1.3", "torch==2.13.0", "transformers==5.23.0", "numpy"]
# ///
"""LyCORIS as a standalone wrapper, as its README has it: ``create_lycoris``, then ``apply_to``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lycoris
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.wrapper import create_lycoris_from_weights
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

ALGORITHMS: dict[str, dict[str, Any]] = {
    "lora": {"algo": "lora"},
    "dora": {"algo": "lora", "dora_wd": True},
    "ia3": {"algo": "ia3"},
}


class OneLayer(nn.Module):
    """A layer and the network that LyCORIS keeps beside it: the layer's forward is replaced, its tensors stay."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(
            False
        )  # the trainer gives the network's parameters to the optimiser
        self.network: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        found: Tensor = self.layer(x)
        return found


class Lycoris(Implementation):
    """LyCORIS's lora, with and without weight decomposition, and (IA)³. The wrapper has no rsLoRA."""

    name = "lycoris-lora"
    version = version("lycoris-lora")
    variants = frozenset(ALGORITHMS)
    layers = frozenset({"linear", "conv2d"})

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """``create_lycoris`` passes on no rsLoRA."""
        return dataclasses.replace(spec, rslora=False)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.feedforward:
            raise Unsupported("create_lycoris passes on no train_on_input: the output is gated")
        model = OneLayer(base)
        network = lycoris.create_lycoris(model, 1.0, **_options(spec))
        return _applied(model, network, base.training)

    def save(self, adapted: Adapted, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        _of(adapted).save_weights(str(path / "adapter.safetensors"), dtype=None, metadata={})

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        model = OneLayer(base)
        network, _ = create_lycoris_from_weights(1.0, str(path / "adapter.safetensors"), model)
        return _applied(model, network, base.training)

    def merge(self, adapted: Adapted) -> nn.Linear:
        """``restore`` and ``merge_to`` of a copy; the copied layer."""
        model: Any = copy.deepcopy(adapted.module)
        model.network.restore()
        model.network.merge_to(1.0)
        plain: nn.Linear = model.layer
        return plain

    def detach(self, adapted: Adapted) -> nn.Linear:
        _of(adapted).restore()
        base: Any = adapted.module.layer
        return base

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Sequence[str] | None = None
    ) -> Mapping[str, Adapted]:
        """A preset's ``target_name`` is a list of expressions that names begin with."""
        if targets is None:
            raise Unsupported("LyCORIS's default targets are those of diffusion models")
        preset = {"target_module": [], "target_name": [rf"(.*\.)?{t}$" for t in targets]}
        model.requires_grad_(False)
        with _preset_kept():
            lycoris.LycorisNetwork.apply_preset(preset)
            network = lycoris.create_lycoris(model, 1.0, **_options(spec))
        network.apply_to()
        names = {f"lycoris_{name}".replace(".", "_"): name for name, _ in model.named_modules()}
        found = {names[lora.lora_name]: lora for lora in network.loras}
        return {name: Adapted(model.get_submodule(name), _slots(lora)) for name, lora in found.items()}

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        kind: Any = IA3Module if variant == "ia3" else LoConModule
        methods = {"shapes": "__init__", "init": "__init__", "scale": "__init__", "forward": "forward",
                   "dropout": "forward", "merge": "get_merged_weight"}  # fmt: skip
        if aspect in ("save_load", "targets"):
            method = {"save_load": "save_weights", "targets": "__init__"}[aspect]
            return Path(inspect.getfile(lycoris.LycorisNetwork)), f"LycorisNetwork.{method}"
        return (
            (Path(inspect.getfile(kind)), f"{kind.__name__}.{methods[aspect]}") if aspect in methods else None
        )


@contextlib.contextmanager
def _preset_kept() -> Iterator[None]:
    """A preset is the class's: the next network would have it, too."""
    kept = {n: v for n, v in vars(lycoris.LycorisNetwork).items() if n.isupper()}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(lycoris.LycorisNetwork, name, value)


def _options(spec: AdapterSpec) -> dict[str, Any]:
    sizes = {"linear_dim": spec.rank, "linear_alpha": spec.alpha, "dropout": spec.dropout}
    return {**sizes, **ALGORITHMS[spec.variant]}


def _of(adapted: Adapted) -> Any:
    """The network of a layer that was adapted alone. Raises Unsupported for one of a whole model."""
    if not isinstance(adapted.module, OneLayer):
        raise Unsupported("LyCORIS does this to the network of a whole model")
    return adapted.module.network


def _applied(model: OneLayer, network: Any, training: bool) -> Adapted:
    """The network on the layer, in the layer's dtype, in training or not as the layer is."""
    network.apply_to()
    model.network = network.to(model.layer.weight.dtype)
    return Adapted(model.train(training), _slots(network.loras[0]))


def _slots(lora: Any) -> dict[str, Slot]:
    if isinstance(lora, IA3Module):  # l = 1 + its weight
        return {"l": Slot(lora.weight, read=lambda w: 1 + w, write=lambda v: v - 1, gradient=lambda g: g)}
    slots = {"A": Slot(lora.lora_down.weight), "B": Slot(lora.lora_up.weight)}
    if lora.wd:
        slots["m"] = Slot(lora.dora_scale, lambda m: m.reshape(-1))
    return slots

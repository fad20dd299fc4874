"""PEFT's checkpoint format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT itself is not needed. What lora_lite has no counterpart for is refused, never dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import checkpoint, peft_config
from .adapter import make, put_on, require_named
from .config import AdapterConfig
from .kinds import kind_of
from .sharded import whole
from .switch import DEFAULT
from .variant import Variant, described, own
from .variants import IA3, PiSSA

__all__ = ["load_peft", "save_peft"]

PREFIX = "base_model.model."
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# PEFT's key endings -> lora_lite's names. An embedding's factors are called otherwise.
KEYS = {
    "LORA": {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "m"},
    "IA3": {"ia3_l": "l"},
    "HRA": {"hra_u": "U"},
    "DELORA": {"delora_A": "A", "delora_B": "B", "delora_lambda": "lambda_", "delora_w_norm": "w_norm"},
}
EMBEDDING = {"lora_embedding_A": "A", "lora_embedding_B": "B", "lora_magnitude_vector": "m"}


def keys_of(adapter: Variant) -> dict[str, str]:
    """PEFT's key ending -> lora_lite's name, of the tensors that one adapter has in PEFT's file."""
    embedding = adapter.kind.name == "embedding"
    keys = EMBEDDING if embedding else KEYS[peft_config.PEFT_TYPE[adapter.Config.variant]]
    return {key: name for key, name in keys.items() if name in adapter.state_dict()}


def shape_of(adapter: Variant, name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape in which PEFT stores a tensor of the adapter."""
    if isinstance(adapter, IA3):
        return (1, tensor.numel()) if adapter.feedforward else (tensor.numel(), 1)
    if name == "m" and adapter.kind.name == "conv2d":
        return (1, tensor.numel(), 1, 1)
    return tuple(tensor.shape)


def save_peft(model: nn.Module, folder: str | PathLike[str], name: str = DEFAULT) -> None:
    """Write one adapter of ``model`` so that ``PeftModel.from_pretrained(base, folder)`` reads it.

    PiSSA is written as the plain LoRA of rank 2r that it amounts to on the original base (appendix C of its
    paper): B A - B₀ A₀. Raises ValueError for a model that is itself one layer, which PEFT cannot name.
    """
    found = require_named(model, name)
    configs = {adapter.config for adapter in found.values()}
    if len(configs) != 1 or "" in found:
        raise ValueError(f"expected a model with adapters of one configuration, got {len(configs)} of them")
    tensors = {
        f"{PREFIX}{path}.{key}": tensor.detach().cpu().contiguous().clone()
        for path, adapter in found.items()
        for key, tensor in exported(adapter).items()
    }
    data = peft_config.written(model, configs.pop(), found)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _replace(target / FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _replace(target / CONFIG, lambda path: path.write_text(json.dumps(data, indent=2)))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, then move there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def exported(adapter: Variant) -> dict[str, Tensor]:
    """PEFT's key endings and tensors of one adapter."""
    tensors = {name: whole(tensor) for name, tensor in adapter.state_dict().items()}
    if isinstance(adapter, PiSSA):
        own = {"A": torch.cat([tensors["A"], adapter.A0]), "B": torch.cat([tensors["B"], -adapter.B0], dim=1)}
        return {key: own[name] for key, name in keys_of(adapter).items()}
    return {k: tensors[n].reshape(shape_of(adapter, n, tensors[n])) for k, n in keys_of(adapter).items()}


def load_peft(
    model: nn.Module, folder: str | PathLike[str], name: str = DEFAULT, config: AdapterConfig | None = None
) -> dict[str, Variant]:
    """Attach the adapter of a folder that PEFT's ``save_pretrained`` wrote; all or nothing, as ``load``.

    A model that is itself the layer takes a folder with one adapted layer. A PiSSA folder of PEFT's holds no
    trace of the residual; as PEFT does, the SVD is repeated on the base that is given. fp64 tensors are rounded
    to the adapter's fp32, as PEFT does. Raises ValueError for an option that lora_lite does not have, for tensors
    that are missing, left over or misshapen, and for what ``load`` refuses.
    """
    data = peft_config.read(Path(folder) / CONFIG)
    found = peft_config.parsed(data)
    layers = _by_layer(model, data["peft_type"], _read_tensors(Path(folder)))
    peft_config.check_complete(model, data, set(layers))
    chosen, entries = {}, {}
    for path, tensors in layers.items():
        layer = checkpoint.layer_for(model, path)
        adapter = make(path, layer, found, peft_config.options(path, found, data), name)
        entries[path] = imported(path, adapter, layer, tensors)
        chosen[path] = adapter
    put_on(model, chosen, entries, name, config)
    return chosen


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / FILE).is_file():
        hint = "; adapter_model.bin is a pickle, which is never opened" if any(folder.glob("*.bin")) else ""
        raise ValueError(f"{str(folder)!r} has no {FILE}{hint}")
    return checkpoint.read_safetensors(folder / FILE)[1]


def _by_layer(model: nn.Module, kind: str, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer name -> PEFT's key ending -> tensor. Raises ValueError for a key that is none of these."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not _is_the_base(model, key, tensor):
            path, ending = _split(key, {**KEYS[kind], **(EMBEDDING if kind == "LORA" else {})})
            layers.setdefault(path, {})[ending] = tensor
    if not layers:
        raise ValueError("the PEFT checkpoint holds no adapter")
    if kind_of(model) is not None and len(layers) == 1:
        return {"": next(iter(layers.values()))}
    return layers


def _split(key: str, endings: dict[str, str]) -> tuple[str, str]:
    """Layer name and ending of a PEFT key."""
    for ending in endings:
        if key.startswith(PREFIX) and key.endswith("." + ending):
            return key.removeprefix(PREFIX).removesuffix("." + ending), ending
    raise ValueError(
        f"the PEFT checkpoint holds {key!r}; expected {PREFIX}<layer>.<one of {', '.join(endings)}>"
    )


def _is_the_base(model: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether it is the base's own weight, which PEFT writes beside an embedding's adapter, and no other one."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    path, _, attribute = name.rpartition(".")
    try:
        layer = model.get_submodule(path)
        found = own(layer, attribute) if isinstance(layer._parameters.get(attribute), Tensor) else None
    except AttributeError:
        return False
    if found is not None and not torch.equal(tensor.to(found.dtype), found.detach().cpu()):
        raise ValueError(
            f"the PEFT checkpoint holds a {name!r} of its own, and lora_lite trains no base weight"
        )
    return found is not None


def imported(path: str, adapter: Variant, layer: nn.Module, tensors: dict[str, Tensor]) -> checkpoint.Entry:
    """PEFT's tensors of one layer as lora_lite's. Raises ValueError unless they are just those, in their shapes."""
    keys, own_tensors = keys_of(adapter), adapter.state_dict()
    if set(tensors) != set(keys):
        raise ValueError(
            f"{described(path)}: the file has the tensors {sorted(tensors)}, expected {sorted(keys)}"
        )
    entry = checkpoint.Entry(options=adapter.options)
    for key, name in keys.items():
        mine = own_tensors[name]
        checkpoint.check_shape(checkpoint.join(path, key), tensors[key], shape_of(adapter, name, mine))
        entry.tensors[name] = tensors[key].reshape(mine.shape).to(mine.dtype)
    if isinstance(adapter, PiSSA):  # the initial factors, which PEFT's folder leaves out
        adapter.init(layer)
        entry.tensors |= {"A_initial": adapter.A0.clone(), "B_initial": adapter.B0.clone()}
    return entry

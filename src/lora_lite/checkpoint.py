"""The adapter file: safetensors, one tensor per adapter parameter, keyed ``layer name.parameter``.

Metadata: ``lora_lite`` (format version), ``config`` (JSON, the variant among it), ``layers`` (JSON, per layer
its options and, for a variant that is bound to one base, the base weight's fingerprint).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import AdapterConfig
from .kinds import kind_of
from .sharded import whole
from .variant import Variant, config_from_dict, described

__all__ = ["Entry", "check", "digest", "layer_for", "read", "write"]

FORMAT = "1"
LONGEST_HEADER = 100_000_000  # safetensors' own limit, in bytes


@dataclass
class Entry:
    """What the file holds for one layer."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None


def digest(weight: Tensor) -> str:
    """sha256 of a weight's dtype, shape and bytes."""
    head = f"{weight.dtype} {tuple(weight.shape)} ".encode()
    flat = whole(weight).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(head + flat.numpy().tobytes()).hexdigest()


def write(path: str | PathLike[str], config: AdapterConfig, entries: dict[str, Entry]) -> None:
    """Write to a temporary file beside ``path``, then move it there: a crash leaves the old file or none."""
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"path must name a file in an existing folder, got {str(target)!r}")
    tensors = {
        join(name, key): whole(tensor).detach().cpu().contiguous().clone()
        for name, entry in entries.items()
        for key, tensor in entry.tensors.items()
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata(config, entries))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def join(layer: str, parameter: str) -> str:
    """The key of a parameter; a model that is itself the layer has the empty name."""
    return f"{layer}.{parameter}" if layer else parameter


def metadata(config: AdapterConfig, entries: dict[str, Entry]) -> dict[str, str]:
    layers = {name: {"options": e.options, "base_sha256": e.fingerprint} for name, e in entries.items()}
    return {"lora_lite": FORMAT, "config": json.dumps(config.to_dict()), "layers": json.dumps(layers)}


def read(path: str | PathLike[str]) -> tuple[AdapterConfig, dict[str, Entry]]:
    """Config and entries of a file. Raises ValueError if it is not one that :func:`write` wrote."""
    source = Path(path)
    if not source.is_file():
        raise ValueError(f"there is no adapter file {str(source)!r}")
    return parse(source, *read_safetensors(source))


def read_safetensors(source: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors. Raises ValueError for anything that is not a whole safetensors file."""
    reject_pickle(source)
    try:
        with safe_open(source, framework="pt", device="cpu") as file:
            meta = file.metadata() or {}
            return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(source)!r} is not a readable safetensors file: {error}") from None


def reject_pickle(source: Path) -> None:
    """Raises ValueError for what ``torch.save`` and ``pickle`` write; opening those can run code."""
    with source.open("rb") as file:
        start = file.read(8)
    # A safetensors file starts with its header's length, which may begin with the same bytes but is small.
    magic = start[:2] == b"PK" or start[:1] == b"\x80"
    if magic and int.from_bytes(start, "little") > LONGEST_HEADER:
        raise ValueError(f"{str(source)!r} is a pickle, which is never opened; expected a safetensors file")


def parse(
    source: Path, meta: dict[str, str], tensors: dict[str, Tensor]
) -> tuple[AdapterConfig, dict[str, Entry]]:
    """Metadata and tensors into config and entries."""
    if meta.get("lora_lite") != FORMAT:
        found = meta.get("lora_lite", "none")
        raise ValueError(f"{str(source)!r} is no lora_lite file of format {FORMAT} (its format: {found})")
    try:
        config = config_from_dict(json.loads(meta["config"]))
        layers = json.loads(meta["layers"])
        entries = {name: Entry({}, dict(i["options"]), i["base_sha256"]) for name, i in layers.items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(source)!r} has damaged lora_lite metadata: {error!r}") from None
    for key, tensor in tensors.items():
        layer, _, parameter = key.rpartition(".")
        if layer not in entries:
            raise ValueError(f"{str(source)!r} holds {key!r}, but its metadata lists no layer {layer!r}")
        entries[layer].tensors[parameter] = tensor
    if not entries:
        raise ValueError(f"{str(source)!r} holds no adapter")
    return config, entries


def layer_for(model: nn.Module, name: str) -> nn.Module:
    """The model's linear layer of that name. Raises ValueError if it has none."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the file adapts layer {name!r}, which this {type(model).__name__} lacks") from None
    if kind_of(layer) is None:
        kind = type(layer).__name__
        raise ValueError(
            f"the file adapts {name or 'a single layer'!r}, which here is a {kind}, not a layer of its kind"
        )
    return layer


def check(name: str, entry: Entry, adapter: Variant, layer: nn.Module) -> None:
    """Raises ValueError unless the tensors are those that this adapter on this layer consists of."""
    expected = adapter.expected()
    if set(entry.tensors) != set(expected):
        has = sorted(entry.tensors)
        raise ValueError(f"{described(name)}: the file has the tensors {has}, expected {sorted(expected)}")
    for key, (shape, dtype) in expected.items():
        check_tensor(join(name, key), entry.tensors[key], shape, dtype)
    if entry.fingerprint != adapter.fingerprint(layer):
        raise ValueError(
            f"{described(name)}: the base weight is not the one that this {adapter.Config.variant} adapter "
            "was made for (its sha256 differs); load it onto that base, in the same dtype"
        )


WHERE = ("targets", "exclude", "layers", "feedforward")  # where to adapt: the file has the layers themselves


def check_config(name: str, adapter: Variant, config: AdapterConfig, options: dict[str, Any]) -> None:
    """Raises ValueError if what was asked for, ``config`` with its ``options`` for this layer, is not in the file."""
    if adapter.config.variant != config.variant:
        raise ValueError(
            f"the file holds a {adapter.config.variant} adapter, and {config.variant} was asked for"
        )
    plain = set(config.to_dict()) - {*WHERE, "variant", *config.patterns.values()}
    for key in sorted(plain | set(options)):
        asked = options.get(key, getattr(config, key, None))
        found = adapter.options.get(key) if key == "feedforward" else adapter.option(key)
        if asked != found:
            raise ValueError(
                f"{described(name)}: the file has {key}={found!r}, and {key}={asked!r} was asked for"
            )


def check_tensor(key: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raises ValueError for another shape, or for a dtype that could not be widened to ``dtype`` exactly."""
    check_shape(key, tensor, tuple(shape))
    if not tensor.is_floating_point() or torch.promote_types(tensor.dtype, dtype) != dtype:
        raise ValueError(f"{key}: the file has dtype {tensor.dtype}, expected {dtype}")


def check_shape(key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape, or for whole numbers."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{key}: the file has shape {tuple(tensor.shape)}, expected {shape}")
    if not tensor.is_floating_point():
        raise ValueError(f"{key}: the file has dtype {tensor.dtype}, expected floating-point numbers")

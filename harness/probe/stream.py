"""A model larger than memory, layer by layer: each weight is read by slices, adapted alone, measured, released."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import peft.utils.constants as tables
import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.compare.layer import Layer, SubjectRaised, answering
from harness.probe.comparison import gap
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS

ROWS = 512  # of a weight, read at once
INPUTS = 8
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


class NoWeights(Exception):
    """The folder cannot be audited; the text says why."""


@dataclass(frozen=True)
class Place:
    """One linear weight in a safetensors file."""

    file: Path
    key: str
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.key.removesuffix(".weight")

    def read(self) -> Tensor:
        """The weight (out, in), read a few hundred rows at a time; the file is closed again, so its pages go."""
        weight = torch.empty(self.shape, dtype=self.dtype)
        with safe_open(self.file, framework="pt", device="cpu") as handle:
            rows = handle.get_slice(self.key)
            for start in range(0, self.shape[0], ROWS):
                weight[start : start + ROWS] = rows[start : start + ROWS]
        return weight


@dataclass
class Streamed:
    """One variant over all layers: relative gaps at the start, per implementation, and what it said instead."""

    variant: str
    gaps: dict[str, list[float]] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def linear_weights(folder: Path) -> list[Place]:
    """Every two-dimensional ``.weight`` in the folder's safetensors files. Raises NoWeights if there is none."""
    found = [place for file in sorted(folder.glob("*.safetensors")) for place in _in_file(file)]
    if not found:
        raise NoWeights(f"{folder} holds no safetensors file with linear weights")
    return found


def _in_file(file: Path) -> Iterator[Place]:
    with safe_open(file, framework="pt", device="cpu") as handle:
        for key in handle.keys():  # noqa: SIM118
            piece = handle.get_slice(key)
            shape, dtype = piece.get_shape(), DTYPES.get(piece.get_dtype())
            if key.endswith(".weight") and len(shape) == 2 and dtype is not None:
                yield Place(file, key, (shape[0], shape[1]), dtype)


def default_targets(folder: Path, variant: str) -> tuple[list[str], list[str]]:
    """PEFT's table for the folder's model type: endings, and those on the other side of a method that has two."""
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    binding = VARIANTS[variant].peft
    table, *other = [getattr(tables, name) for name in binding.tables] if binding else [{}]
    if kind not in table:
        raise NoWeights(f"{folder} names no model type with default targets ({kind}); give --targets")
    return table[kind], other[0].get(kind, []) if other else []


def chosen(places: list[Place], endings: list[str]) -> list[Place]:
    """The places whose layer's name ends with one of ``endings``, whole parts of a name."""
    return [p for p in places if ends(p.layer, endings)]


def ends(name: str, endings: list[str]) -> bool:
    """Whether a dotted name ends with one of ``endings``."""
    return any(name == e or name.endswith("." + e) for e in endings)


def plan(folder: Path, specs: list[AdapterSpec], targets: list[str] | None) -> dict[Place, list[AdapterSpec]]:
    """Which variants each weight is adapted with, so that every weight is read once."""
    places = linear_weights(folder)
    asked: dict[Place, list[AdapterSpec]] = {}
    for spec in specs:
        endings, inner = (targets, []) if targets is not None else default_targets(folder, spec.variant)
        for place in chosen(places, endings):
            side = VARIANTS[spec.variant].side
            sided = side.put(spec, ends(place.layer, inner)) if side else spec
            asked.setdefault(place, []).append(sided)
    if not asked:
        raise NoWeights(f"no weight in {folder} ends with {targets}")
    return asked


def audit(
    asked: Mapping[Place, list[AdapterSpec]],
    implementations: Mapping[str, Implementation],
    done: Callable[[Place], None],
) -> dict[str, Streamed]:
    """The gap that each fresh adapter opens on each weight alone, on random inputs."""
    found: dict[str, Streamed] = {}
    generator = torch.Generator().manual_seed(0)
    for place, specs in asked.items():
        weight = place.read()
        x = torch.randn(INPUTS, place.shape[1], generator=generator).to(place.dtype)
        for spec in specs:
            into = found.setdefault(spec.variant, Streamed(spec.variant))
            into.layers.append(place.layer)
            for name, who in implementations.items():
                _one(who, name, weight, x, spec, into)
        done(place)
    return found


@torch.no_grad()
def _one(
    who: Implementation, name: str, weight: Tensor, x: Tensor, spec: AdapterSpec, into: Streamed
) -> None:
    exact = x @ weight.T
    seed_torch(0)
    try:
        with answering(who.name, "adapt"):
            layer = Layer(who.adapt(_linear(weight.clone()), spec), who.name)
        into.gaps.setdefault(name, []).append(gap(layer(x), exact).relative)
    except (SubjectRaised, Unsupported) as error:
        into.notes[name] = str(error)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer

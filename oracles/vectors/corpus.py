"""Reading the corpus back: what a test, a claim or a command needs of one vector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from oracles.vectors.chain import ChainModel, Config
from oracles.vectors.writer import HOME

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Vector:
    """One vector of a corpus in ``home``."""

    home: Path
    id: str

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.home / "vectors" / self.id

    @property
    def adapter(self) -> Path:
        """The adapter folder in PEFT's format."""
        return self.folder / "adapter"

    @property
    def base(self) -> Path:
        """The base's folder."""
        return self.home / "bases" / self.about["base"]

    @cached_property
    def about(self) -> dict[str, Any]:
        """``vector.json``."""
        return dict(json.loads((self.folder / "vector.json").read_text(encoding="utf-8")))

    @cached_property
    def model(self) -> Config:
        """The base's ``config.json``."""
        return dict(json.loads((self.base / "config.json").read_text(encoding="utf-8")))

    @cached_property
    def base_tensors(self) -> Tensors:
        """The base's own tensors, in its dtype."""
        found: Tensors = {}
        for path in sorted(self.base.glob("*.safetensors")):
            found |= load_file(path)
        return found

    @cached_property
    def untied(self) -> Tensors:
        """The base in float64, tied tensors under both names."""
        found = {name: tensor.double() for name, tensor in self.base_tensors.items()}
        return {**found, **{new: found[old] for new, old in self.model.get("tied", {}).items()}}

    @cached_property
    def numbers(self) -> Tensors:
        """``expected.safetensors``; a vector that has to be refused has none."""
        return load_file(self.folder / "expected.safetensors")

    @cached_property
    def inputs(self) -> list[Tensor]:
        """The three inputs."""
        held = load_file(self.home / "inputs" / f"{self.about['base']}.safetensors")
        return [held[name] for name in sorted(held)]

    def part(self, prefix: str) -> Tensors:
        """The expected tensors whose names start with ``prefix``, without it."""
        return {n.removeprefix(prefix): t for n, t in self.numbers.items() if n.startswith(prefix)}

    @cached_property
    def merged(self) -> Tensors:
        """Every tensor of the merged model, float64."""
        return {**self.untied, **self.part("merged/")}

    def reading(self, identity: str) -> Tensors:
        """Every tensor that a wrong reading would leave, float64."""
        deltas = {**self.part("delta/"), **self.part(f"wrong/{identity}/")}
        return {**self.untied, **{n: self.untied[n] + d for n, d in deltas.items()}}

    def build(self, dtype: torch.dtype | None = None) -> ChainModel:
        """The base as a module of its own, in its own dtype or another."""
        return ChainModel(self.model, {n: t.clone() for n, t in self.base_tensors.items()}, dtype)


def vectors(home: Path = HOME) -> Iterator[Vector]:
    """All vectors of a corpus, in its order."""
    listed = json.loads((home / "corpus.json").read_text(encoding="utf-8"))
    for name in listed["vectors"]:
        yield Vector(home, name)

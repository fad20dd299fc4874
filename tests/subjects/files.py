"""Ways to keep an adapter on disk: one mix-in each, over whatever slots the subject shows."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported


class BadFileError(ValueError):
    """A file that is no adapter of the method that was asked for."""


def state(adapted: Adapted) -> dict[str, Tensor]:
    """Every slot under its name, as plain contiguous tensors; PiSSA's residual too, for it defines the adapter."""
    return {n: s.view(s.tensor.detach()).clone().contiguous() for n, s in adapted.slots.items()}


class Stored(Implementation):
    """Save and load through two methods that a mix-in fills in: ``write`` and ``read``."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        raise Unsupported(f"{self.name} offers no save")

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        raise Unsupported(f"{self.name} offers no load")

    def method(self, adapted: Adapted) -> str:
        """What the file says that it is: the tensors, and the settings that they mean nothing without."""
        spec = next(
            m.spec for m in adapted.module.modules() if isinstance(getattr(m, "spec", None), AdapterSpec)
        )
        return f"{'+'.join(sorted(adapted.slots))} {settings(spec)}"

    def save(self, adapted: Adapted, path: Path) -> None:
        self.write(state(adapted), self.method(adapted), path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        method, tensors = self.read(path)
        # Tried on a copy first: a file that does not fit leaves the base as it is.
        self.fill(self.adapt(copy.deepcopy(base), spec), method, tensors)
        return self.fill(self.adapt(base, spec), method, tensors)

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        """Put the stored tensors in their slots. Raises BadFileError where name, kind or shape does not fit."""
        _demand(
            method == self.method(adapted) and set(tensors) == set(adapted.slots),
            f"the file holds {method} ({sorted(tensors)}), expected {self.method(adapted)}",
        )
        with torch.no_grad():
            for name, slot in adapted.slots.items():
                place = slot.view(slot.tensor)
                _demand(
                    place.shape == tensors[name].shape,
                    f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(place.shape)}",
                )
                place.copy_(tensors[name])
        return adapted


def _demand(fits: bool, otherwise: str) -> None:
    """Not a method: the audit books on the library what a function of its own raises, and on the wrapper the rest."""
    if not fits:
        raise BadFileError(otherwise)


class InSafetensors(Stored):
    """One safetensors file; the method stands in its metadata."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        save_file(dict(tensors), path, metadata={"method": method})

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        with safe_open(path, framework="pt") as handle:
            method = (handle.metadata() or {}).get("method", "")
        return method, load_file(path)


class InFolder(Stored):
    """A folder with tensors and a JSON configuration, as many libraries do."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        path.mkdir(parents=True)
        save_file(dict(tensors), path / "adapter_weights.safetensors")
        (path / "config.json").write_text(json.dumps({"method": method}), encoding="utf-8")

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return config["method"], load_file(path / "adapter_weights.safetensors")


class InTorchFile(Stored):
    """``torch.save`` of a state dict with its metadata; read with ``weights_only=True``."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        torch.save({"method": method, "tensors": dict(tensors)}, path)

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        found = torch.load(path, weights_only=True)
        return found["method"], found["tensors"]


class InStateDict(Stored):
    """A flat safetensors state dict with keys as a whole model would have them, its spec in the metadata."""

    PREFIX = "model.layers.0.proj.adapter."

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        flat = {self.PREFIX + name: tensor for name, tensor in tensors.items()}
        save_file(flat, path, metadata={"spec": json.dumps({"method": method, "library": self.name})})

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        with safe_open(path, framework="pt") as handle:
            spec = json.loads((handle.metadata() or {}).get("spec", "{}"))
        tensors = load_file(path)
        return spec.get("method", ""), {key.removeprefix(self.PREFIX): t for key, t in tensors.items()}


def settings(spec: AdapterSpec) -> str:
    """What of a spec decides the function, as a line of text; dropout is a matter of training."""
    told = {name: value for name, value in asdict(spec).items() if name not in ("dropout", "lambda0")}
    return json.dumps(told, sort_keys=True)

"""One vector in the making: an adapter folder in PEFT's format, and what it means.

The tensors are drawn, not trained: none is near its initial value, where a wrong reading looks right.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from oracles.vectors.bases import BASES, base_tensors, layer_of, numbers
from oracles.vectors.chain import Config
from oracles.vectors.meaning import WHOLE, AdaptedModule

PREFIX = "base_model.model."
Expect = Literal["apply", "refuse", "apply_or_refuse"]


@dataclass
class Draft:
    """A vector: ``keys`` and ``config`` are what the folder holds, ``modules`` what they mean."""

    id: str
    base: str
    source: str  # the kind of public fault that it is for
    must: tuple[str, ...] = ()  # readings that it exists to tell apart
    expect: Expect = "apply"
    config: Config = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    modules: list[AdaptedModule] = field(default_factory=list)
    # reading -> module -> where it lands instead
    moved: dict[str, dict[str, str]] = field(default_factory=dict)
    tied: str = ""  # a tensor that a tie changes as well, wrongly
    why: str = ""  # what is wrong with a folder that has to be refused
    dtype: torch.dtype = torch.float32
    files: dict[str, bytes | None] = field(default_factory=dict)  # a file's bytes instead; None: no such file
    described: Config | None = None  # the base, where it is none of the corpus'
    without_readings: bool = False  # the wrong ones are not worked out

    @property
    def model(self) -> Config:
        """The base's description."""
        return self.described or BASES[self.base]

    def layer(self, module: str) -> Config:
        """A layer of the base."""
        return layer_of(self.model, module)

    def draw(self, module: str, name: str, *shape: int, low: int = 8, high: int = 100) -> Tensor:
        """One factor, the same for the same names."""
        return numbers(f"{self.id}/{module}/{name}", shape, low, high)

    def put(self, module: str, ending: str, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
        """One tensor of the file, under PEFT's name."""
        self.keys[f"{PREFIX}{module}.{ending}"] = tensor.to(dtype or self.dtype).contiguous()

    def finish(self, kind: str, targets: Any, **more: Any) -> Draft:
        """The configuration file."""
        self.config = {"peft_type": kind, "base_model_name_or_path": "", "target_modules": targets, **more}
        return self


def of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The first pattern, in the file's order, that ends the module's name at a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def sizes(layer: Config) -> tuple[int, int]:
    """Inputs and outputs of a layer, in PEFT's words."""
    if layer["kind"] == "embedding":
        return layer["number"], layer["dim"]
    return layer["in"], layer["out"]


def saved(draft: Draft, module: str, tensors: Mapping[str, Tensor] | None = None, ending: str = "") -> Draft:
    """A module that the file holds whole (modules_to_save), or its trained bias."""
    whole = dict(tensors or {})
    if not whole:
        for name, value in base_like(draft, module).items():
            whole[name] = draft.draw(module, f"saved {name}", *value.shape)
    for name, value in whole.items():
        draft.put(module, f"{ending}{name}", value)
    same = [m for m in draft.modules if m.module == module]
    if same:
        merged = {**same[0].replaced, **whole}
        draft.modules[draft.modules.index(same[0])] = dataclasses.replace(same[0], replaced=merged)
    else:
        kind = draft.layer(module)["kind"]
        draft.modules.append(AdaptedModule(module, WHOLE, kind, {}, replaced=whole))
    return draft


def base_like(draft: Draft, module: str) -> dict[str, Tensor]:
    """A module's tensors in the base, by their last names."""
    tensors = base_tensors(draft.model)
    tensors |= {new: tensors[old] for new, old in draft.model.get("tied", {}).items()}
    return {n.removeprefix(f"{module}."): v for n, v in tensors.items() if n.rpartition(".")[0] == module}

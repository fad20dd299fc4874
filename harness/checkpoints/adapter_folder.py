"""An adapter folder in PEFT's format: its tensors by module, and (with a base) what each module's mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoints.adapter_config import AdapterConfig, read_config
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.checkpoints.stacked_parameters import Pair, stacked_parameter
from harness.checkpoints.tensor_folder import TensorFolder
from oracles.vectors.held import Held
from oracles.vectors.meaning import WHOLE, AdaptedModule
from oracles.vectors.unreadable import Unreadable

PREFIX = "base_model.model."
WEIGHTS, WEIGHTS_INDEX = "adapter_model.safetensors", "adapter_model.safetensors.index.json"


@dataclass
class Part:
    """One module's tensors in the file: ``keys`` factor -> name in the file, ``whole`` tensors it holds as they are."""

    module: str
    level: int = 0  # how many times ".base_layer" stood in the name: nested wrappers of a module's parameters
    keys: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


class AdapterFolder:
    """The configuration and the tensors of an adapter."""

    def __init__(self, folder: Path) -> None:
        """Raises Unreadable for a folder that is none, or whose tensors are not those of its method."""
        self.config: AdapterConfig = read_config(folder)
        found = [p for p in (folder / WEIGHTS_INDEX, folder / WEIGHTS) if p.is_file()]
        if not found:
            hint = (
                "; adapter_model.bin is a pickle, which is never opened" if any(folder.glob("*.bin")) else ""
            )
            raise Unreadable(f"{folder} has no {WEIGHTS}{hint}")
        sharded = found[0].name == WEIGHTS_INDEX
        self.tensors = TensorFolder(folder if sharded else found[0], WEIGHTS_INDEX)
        self.shared: dict[str, str] = {}
        self.parts = self._parts()
        if not self.parts:
            raise Unreadable(f"{folder / WEIGHTS} holds no tensors of an adapter")

    def _parts(self) -> list[Part]:
        found: dict[tuple[str, int], Part] = {}
        for key in self.tensors.names:
            shared = _meant_by(self.config.method.shared, key)
            if shared:
                self.shared[shared] = key
                continue
            module, level, factor, name = self._split(key)
            part = found.setdefault((module, level), Part(module, level))
            held = part.keys if factor else part.whole
            if (factor or name) in held:
                raise Unreadable(
                    f"the adapter holds {key!r} beside {held[factor or name]!r}: one adapter is expected"
                )
            held[factor or name] = key
        return [found[place] for place in sorted(found)]

    def _split(self, key: str) -> tuple[str, int, str, str]:
        """Module, level, factor or "" and the tensor's own name, of a name in the file."""
        if not key.startswith(PREFIX):
            raise Unreadable(f"the adapter holds {key!r}; expected names that start with {PREFIX!r}")
        name = key.removeprefix(PREFIX)
        for ending, factor in self.config.method.endings.items():
            match = re.fullmatch(rf"(?P<module>.+?)(?P<inner>(\.base_layer)*)\.{ending}", name)
            if match:
                return match["module"], match["inner"].count("."), factor, ""
        module, _, tensor = name.rpartition(".")
        return module.removesuffix(".base_layer"), 0, "", tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the first factor: what a library multiplies in."""
        part = next(p for p in self.parts if p.keys or p.whole)
        return self.tensors.dtype(next(iter((part.keys or part.whole).values())))

    def against(self, base: BaseCheckpoint) -> list[AdaptedModule]:
        """What the file means on ``base``, module by module.

        The factors are read here, they are small. Raises Unreadable for tensors that are missing, that nothing in
        the base takes, or of another shape.
        """
        found = [module for part in self.parts for module in self._meant(part, base)]
        self._check_complete(base)
        return found

    def _check_complete(self, base: BaseCheckpoint) -> None:
        adapted = {part.module for part in self.parts if part.keys}
        if self.config.lists_targets:
            missing = [m for m in base.modules if self.config.is_target(m) and m not in adapted]
            if missing:
                raise Unreadable(f"the file says that it is for {missing[0]}, and holds no tensors for it")
        for name in self.config.saved_modules:
            if not any(self.config.is_saved(part.module) and part.whole for part in self.parts):
                raise Unreadable(f"the file says that it holds {name} whole, and does not")

    def _meant(self, part: Part, base: BaseCheckpoint) -> Iterator[AdaptedModule]:
        whole = {tensor: self._whole(part, tensor, base) for tensor in part.whole}
        if not part.keys:
            yield AdaptedModule(part.module, WHOLE, "linear", {}, replaced=whole)
            return
        factors = {name: self.tensors.tensor(key) for name, key in part.keys.items()}
        for name, factor in factors.items():
            if factor.numel() == 0 or not factor.is_floating_point():
                words = "empty" if factor.numel() == 0 else f"of dtype {factor.dtype}"
                raise Unreadable(f"{part.keys[name]} is {words}, shape {tuple(factor.shape)}")
        yield self.config.method.read(self._held(part, factors, whole, base))

    def _held(
        self, part: Part, factors: dict[str, Tensor], whole: dict[str, Tensor], base: BaseCheckpoint
    ) -> Held:
        held = self.alone(part, factors)
        more: dict[str, Any] = {
            "has_bias": base.stored(f"{part.module}.bias") is not None,
            "shared": {name: self.tensors.tensor(key) for name, key in self.shared.items()},
            "whole": whole,
        }
        if self.config.target_parameters and part.module not in base.modules:
            more |= self._stacked(part, base)
        else:
            more["shape"] = self.weight_shape(part, base)
        return dataclasses.replace(held, **more)

    def _stacked(self, part: Part, base: BaseCheckpoint) -> dict[str, Any]:
        """What a stack of experts, or another bare parameter, adds to what is held."""
        if not self.config.method.takes_parameters:
            raise Unreadable(
                f"the adapter is for parameters of {part.module}, on which {self.config.method.id} is not defined"
            )
        pairs = [
            Pair(p.level, self._shape(p, "A"), self._shape(p, "B"), self.config.rank(p.module))
            for p in self.parts
            if p.module == part.module
        ]
        found = stacked_parameter(part.module, part.level, pairs, self.config.target_parameters, base)
        return dataclasses.asdict(found)

    def _shape(self, part: Part, factor: str) -> tuple[int, ...]:
        return self.tensors.shape(part.keys[factor]) if factor in part.keys else ()

    def alone(self, part: Part, factors: dict[str, Tensor]) -> Held:
        """What the file says of a module without its base."""
        config = self.config
        return Held(
            part.module,
            factors,
            part.keys,
            shape=(),
            has_bias=False,
            config=config.data,
            rank=config.rank(part.module),
            alpha=config.alpha(part.module),
            default_rank=config.default_rank,
            default_alpha=config.default_alpha,
        )

    def _whole(self, part: Part, tensor: str, base: BaseCheckpoint) -> Tensor:
        name = f"{part.module}.{tensor}"
        trained_bias = tensor == "bias" and self.config.data.get("bias", "none") != "none"
        if not trained_bias and not self.config.is_saved(part.module):
            raise Unreadable(
                f"the adapter holds {part.whole[tensor]!r}, which is no tensor of {self.config.method.peft_type} "
                "and of no module that modules_to_save names"
            )
        return self._fits(part.whole[tensor], name, base)

    def _fits(self, key: str, name: str, base: BaseCheckpoint) -> Tensor:
        stored = base.stored(name)
        if stored is None:
            raise Unreadable(f"the adapter holds {key!r}; the base has no {name!r}")
        value = self.tensors.tensor(key)
        shape = base.tensors.shape(stored)
        if tuple(value.shape) != shape:
            raise Unreadable(f"{key} has shape {tuple(value.shape)}, the base's {name} has {shape}")
        return value

    def weight_shape(self, part: Part, base: BaseCheckpoint) -> tuple[int, ...]:
        """Shape of the module's weight in the base; raises Unreadable where it is none, or no target."""
        shape = base.modules.get(part.module)
        if shape is None:
            near = [m for m in base.modules if m.rpartition(".")[2] == part.module.rpartition(".")[2]]
            hint = f" (it has {near[0]!r})" if near else ""
            raise Unreadable(f"the adapter is for {part.module!r}, which the base does not have{hint}")
        if not self.config.is_target(part.module):
            raise Unreadable(
                f"the adapter holds tensors for {part.module!r}, for which its configuration is not"
            )
        return shape


def _meant_by(names: Mapping[str, str], key: str) -> str:
    """The factor whose pattern a name in the file matches, or nothing."""
    return next((factor for pattern, factor in names.items() if re.fullmatch(pattern, key)), "")

"""A folder of safetensors, sharded or not, read a block of rows at a time.

A file is mapped only while one of its tensors is read, so that the process stays small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oracles.vectors.unreadable import Unreadable

INDEX = "model.safetensors.index.json"
BLOCK = 1 << 20  # entries of a block: some twenty float64 copies of it exist at a time


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what its file's header says of it."""

    path: Path
    shape: tuple[int, ...]
    code: str  # its dtype, in safetensors' word


class TensorFolder:
    """Names, shapes and rows of the tensors in a checkpoint; no file stays open."""

    def __init__(self, folder: Path, index: str = INDEX) -> None:
        """Raises Unreadable where there are no tensors, where two shards hold the same one, or lack a listed one."""
        self.folder = folder
        self._places: dict[str, Place] = {}
        if not folder.exists():
            raise Unreadable(f"there is no {folder}")
        for path in self._paths(folder, index):
            self._open(path)
        self._check_index(folder / index)

    def _paths(self, folder: Path, index: str) -> list[Path]:
        if folder.is_file():
            return [folder]
        if (folder / index).is_file():
            return sorted({folder / name for name in _weight_map(folder / index).values()})
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            hint = "; a pickled file is never opened" if pickled else ""
            raise Unreadable(f"{folder} holds no safetensors{hint}")
        return found

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in self._places:
                        raise Unreadable(f"{self.folder} holds {name} in two files")
                    view = file.get_slice(name)
                    self._places[name] = Place(path, tuple(view.get_shape()), view.get_dtype())
        except (OSError, SafetensorError) as error:
            raise Unreadable(f"{path} is not a readable safetensors file: {error}") from None

    def _check_index(self, index: Path) -> None:
        listed = _weight_map(index) if index.is_file() else {}
        missing = [name for name in listed if name not in self._places]
        if missing:
            raise Unreadable(f"{index} lists {missing[0]}, which {listed[missing[0]]} does not hold")

    @property
    def names(self) -> list[str]:
        """All tensors, in order."""
        return sorted(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype; raises Unreadable for one that torch does not have."""
        code = self._places[name].code
        if code not in DTYPES:
            raise Unreadable(f"{name} in {self.folder} has dtype {code}, which is not known here")
        return DTYPES[code]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, in its own dtype."""
        with safe_open(self._places[name].path, framework="pt") as file:
            return file.get_tensor(name).clone()

    def blocks(self, name: str, matrix: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """The tensor as a matrix (rows, columns): the first row and the rows of each block, in its own dtype."""
        shape = self.shape(name)
        if len(shape) < 2:
            yield 0, self.tensor(name).reshape(matrix)
            return
        per_index = max(matrix[0] // shape[0], 1)
        step = max(BLOCK // max(matrix[1] * per_index, 1), 1)
        with safe_open(self._places[name].path, framework="pt") as file:
            view = file.get_slice(name)
            for first in range(0, shape[0], step):
                yield first * per_index, view[first : first + step].reshape(-1, matrix[1])


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unreadable(f"{index} is not a readable index of shards: {error!r}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises Unreadable."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"there is no readable {path}: {error.strerror}") from None
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Unreadable(f"{path} holds a {type(data).__name__}, expected an object")
    return data

"""What a subject's `save` left behind, and damaged copies of it.

Pickles are recognised; of torch's archives tensors are read and nothing else, never an object that runs code.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.compare.outcome import OutsideDomain

PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_pickle(file: Path) -> bool:
    """Whether a file is a pickle, or an archive of torch's with one in it; numpy's archives of arrays are neither."""
    with file.open("rb") as stream:
        begins = stream.read(4)
    if begins != b"PK\x03\x04":
        return begins.startswith(PICKLE_MAGIC)
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return True  # cut off: what torch writes most often


@dataclass(frozen=True)
class Stored:
    """The files under a path: safetensors contents by name, and files that are pickles or torch archives."""

    tensors: dict[str, Tensor]
    safetensors: list[Path]
    pickles: list[Path]


def stored(path: Path) -> Stored:
    """Everything that ``save`` wrote to ``path``, a file or a folder (or a file beside it with a suffix added)."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        files = sorted(p for p in path.parent.glob(path.name + "*") if p.is_file())
    pickles = [f for f in files if is_pickle(f)]
    tensors: dict[str, Tensor] = {}
    readable = []
    for file in files:
        try:
            tensors |= load_file(file)
            readable.append(file)
        except (SafetensorError, OSError, ValueError):
            continue
    return Stored(tensors, readable, pickles)


def opened(archives: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of torch's archives, by file and place; of one that holds anything but plain values, none."""
    found: dict[str, Tensor] = {}
    for file in archives:
        with suppress(Exception):  # whatever it is, torch will not read it as tensors alone
            found |= dict(_tensors(torch.load(file, map_location="cpu", weights_only=True), file.name))
    return found


def _tensors(value: object, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    named = value.items() if isinstance(value, dict) else ()
    for name, each in [*named, *(enumerate(value) if isinstance(value, list | tuple) else ())]:
        yield from _tensors(each, f"{place}.{name}")


def holds(tensors: dict[str, Tensor], value: Tensor) -> bool:
    """Whether some stored tensor has exactly the entries of ``value``, in whatever layout."""
    wanted = value.double().flatten().sort().values
    for tensor in tensors.values():
        plain = tensor.layout == torch.strided and tensor.is_floating_point()
        if plain and tensor.numel() == wanted.numel():
            found = tensor.double().flatten().sort().values
            if torch.equal(found, wanted):
                return True
    return False


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    save_file(change(load_file(file)), file, metadata=metadata)


def _largest(tensors: dict[str, Tensor]) -> str:
    return max(sorted(tensors), key=lambda name: tensors[name].numel())


def truncate(path: Path) -> None:
    """Cut the last safetensors file in half."""
    file = _the_file(path)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def drop_key(path: Path) -> None:
    """Leave the largest tensor out."""
    file = _the_file(path)
    name = _largest(load_file(file))
    _rewrite(file, lambda tensors: {k: v for k, v in tensors.items() if k != name})


def misshape(path: Path) -> None:
    """Give the largest tensor one entry more along its last dimension."""
    file = _the_file(path)
    name = _largest(load_file(file))

    def widen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        wide = torch.cat([tensors[name], tensors[name][..., -1:]], dim=-1)
        return {**tensors, name: wide.contiguous()}

    _rewrite(file, widen)


class _Canary:
    """Unpickling an instance makes the file that it names: proof that a loader runs code from checkpoints."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.flag), "w")


def booby_trap(path: Path) -> Path:
    """Replace the adapter's file by a pickle that would touch a flag when loaded; returns the flag's path.

    A torch archive is replaced by a torch archive, so that ``torch.load`` gets as far as unpickling.
    """
    found = stored(path)
    if not found.safetensors and not found.pickles:
        raise OutsideDomain("the subject writes neither safetensors nor pickles")
    file = (found.safetensors or found.pickles)[-1]
    flag = path.parent / "code-was-run"
    if file.read_bytes()[:2] == b"PK":
        torch.save({"A": _Canary(flag)}, file)
    else:
        file.write_bytes(pickle.dumps({"A": _Canary(flag)}))
    return flag


def _the_file(path: Path) -> Path:
    found = stored(path).safetensors
    if not found:
        raise OutsideDomain(
            "the subject does not write safetensors: its files cannot be damaged in a known way"
        )
    return found[-1]


def copy(path: Path, to: Path) -> Path:
    """A copy of a saved adapter, a file or a folder."""
    if path.is_dir():
        return Path(shutil.copytree(path, to))
    if path.is_file():
        return Path(shutil.copy(path, to))
    for file in sorted(path.parent.glob(path.name + "*")):
        shutil.copy(file, to.with_name(to.name + file.name.removeprefix(path.name)))
    return to

"""What a subject's `save` left behind, and damaged copies of it.

Pickles are recognised; of torch's archives tensors are read and nothing else, never an object that runs code.
"""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.compare.outcome import OutsideDomain

HALVES = (torch.float16, torch.bfloat16)
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


def holds(tensors: Mapping[str, Tensor], value: Tensor) -> bool:
    """Whether some stored tensor has exactly the entries of ``value``, in whatever layout."""
    return bool(_holding(tensors, value))


def _holding(tensors: Mapping[str, Tensor], value: Tensor) -> list[str]:
    """The names of the tensors that have exactly the entries of ``value``, in whatever layout."""
    wanted = value.double().flatten().sort().values
    return [name for name, tensor in tensors.items() if _is_plain(tensor) and _has(tensor, wanted)]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.is_floating_point()


def _has(tensor: Tensor, wanted: Tensor) -> bool:
    if tensor.numel() != wanted.numel():
        return False
    return torch.equal(tensor.double().flatten().sort().values, wanted)


def held_in_half(tensors: Mapping[str, Tensor], value: Tensor) -> torch.dtype | None:
    """The half precision in which some stored tensor has the entries of ``value``, rounded; None where none has."""
    for dtype in HALVES:
        stored_so = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        if holds(stored_so, value.to(dtype)):
            return dtype
    return None


def word_of(dtype: torch.dtype) -> str:
    """float16, bfloat16."""
    return str(dtype).removeprefix("torch.")


def all_tensors(path: Path) -> dict[str, Tensor]:
    """Whatever tensors the files under a path hold, torch's own archives included where they can be read as such."""
    found = stored(path)
    return {**opened(found.pickles), **found.tensors}


def names(path: Path) -> set[str]:
    """What the files under a path call their tensors."""
    found = stored(path)
    archived = (str(name) for f in found.pickles for part in _parts(_content(f)) for name in part)
    return {*found.tensors, *archived}


Part = dict[Any, Tensor]


def _content(file: Path) -> Any:
    """What a torch archive holds, where that is plain values alone; None where it is anything else."""
    with suppress(Exception):
        return torch.load(file, map_location="cpu", weights_only=True)
    return None


def _parts(content: Any) -> list[Part]:
    """The tensors of an archive's dict, and of the dicts in it, each as a dict of its own by the same keys."""
    return [part for part in map(_tensors_of, _dicts(content)) if part]


def _dicts(content: Any) -> list[dict[Any, Any]]:
    """An archive's dict and the dicts in it; none where it holds anything else."""
    if not isinstance(content, dict):
        return []
    return [content, *(each for each in content.values() if isinstance(each, dict))]


def _tensors_of(part: dict[Any, Any]) -> Part:
    return {k: v for k, v in part.items() if isinstance(v, Tensor)}


def rewrite(file: Path, change: Callable[[Part], Part]) -> None:
    """Put ``change`` of its tensors into a file, safetensors or torch's archive; what else it holds stays."""
    if not is_pickle(file):
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata()
        save_file(change(load_file(file)), file, metadata=metadata)
        return
    content = _content(file)
    for part in _dicts(content):
        before = _tensors_of(part)
        after = change(before)
        for gone in before.keys() - after.keys():
            del part[gone]
        part.update(after)
    torch.save(content, file)


def _largest(file: Path, own: Sequence[Tensor]) -> Any:
    """The name of the largest of the adapter's ``own`` tensors, which no loader can do without.

    Where none of them is found, of all in the file; raises OutsideDomain for an archive, which may hold anything else.
    """
    parts = _parts(_content(file)) if is_pickle(file) else [load_file(file)]
    there = {name: tensor for part in parts for name, tensor in part.items()}
    values = [v for value in own for v in (value, *(value.to(half) for half in HALVES))]
    known = {name for value in values for name in _holding(there, value)}
    if not known and is_pickle(file):
        raise OutsideDomain("which tensors of the subject's archive are the adapter's is not known")
    return max(sorted(known or there, key=str), key=lambda name: there[name].numel())


def truncate(path: Path, own: Sequence[Tensor] = ()) -> None:
    """Cut the last file of tensors in half."""
    file = _the_file(path)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def drop_key(path: Path, own: Sequence[Tensor] = ()) -> None:
    """Leave the adapter's largest tensor out; ``own``: the adapter's tensors."""
    file = _the_file(path)
    name = _largest(file, own)
    rewrite(file, lambda tensors: {k: v for k, v in tensors.items() if k != name})


def misshape(path: Path, own: Sequence[Tensor] = ()) -> None:
    """Give the adapter's largest tensor one entry more along its last dimension."""
    file = _the_file(path)
    name = _largest(file, own)

    def widen(tensors: Part) -> Part:
        if name not in tensors:
            return tensors
        wide = torch.cat([tensors[name], tensors[name][..., -1:]], dim=-1)
        return {**tensors, name: wide.contiguous()}

    rewrite(file, widen)


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
    files = with_tensors(path)
    if not files:
        raise OutsideDomain(
            "the subject writes neither safetensors nor torch's archives of tensors alone: "
            "its files cannot be damaged in a known way"
        )
    return files[-1]


def with_tensors(path: Path) -> list[Path]:
    """The safetensors files; where there are none, torch's archives whose dicts hold tensors."""
    found = stored(path)
    return found.safetensors or [f for f in found.pickles if _parts(_content(f))]


def copy(path: Path, to: Path) -> Path:
    """A copy of a saved adapter, a file or a folder."""
    if path.is_dir():
        return Path(shutil.copytree(path, to))
    if path.is_file():
        return Path(shutil.copy(path, to))
    for file in sorted(path.parent.glob(path.name + "*")):
        shutil.copy(file, to.with_name(to.name + file.name.removeprefix(path.name)))
    return to

"""The command inspect: what an adapter file holds and means, module by module, and what is odd about it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from harness.checkpoints.adapter_folder import AdapterFolder, Part
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.update import LowRank


@dataclass(frozen=True)
class Row:
    """One module of the file."""

    module: str
    rank: int | None
    alpha: float | None
    scale: float | None  # as it will be applied
    numbers: int
    dtype: str
    norm: float | None  # ‖W' - W‖ with a base; without one ‖s B A‖, where the method has these factors
    share: float | None  # ‖ΔW‖ / ‖W‖, with a base
    odd: str


def add_command(commands: Any) -> None:
    """The sub-command and its options."""
    parser = commands.add_parser(
        "inspect",
        help="what an adapter file holds and means",
        description="Exit 0: readable; 1: readable, with oddities; 2: unreadable.",
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder in PEFT's format")
    parser.add_argument("--base", type=Path, metavar="DIR", help="the base that it is for")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run, command_name="inspect")


def run(options: argparse.Namespace) -> int:
    """Print the table; the exit code."""
    folder = AdapterFolder(options.adapter)
    base = BaseCheckpoint(options.base) if options.base else None
    found = list(rows(folder, base))
    oddities = list(_of_the_whole(folder, base))
    if options.json:
        print(
            json.dumps(
                {
                    "method": folder.config.method.id,
                    "odd": oddities,
                    "modules": [asdict(r) for r in found],
                }
            )
        )
    else:
        _print(folder, found, oddities)
    return 1 if oddities or any(row.odd for row in found) else 0


def rows(folder: AdapterFolder, base: BaseCheckpoint | None) -> Iterator[Row]:
    """One row per module, in the file's order of names."""
    meant = _meant(folder, base)
    for part in folder.parts:
        yield _row(folder, part, base, meant.get((part.module, part.level)))


def _meant(folder: AdapterFolder, base: BaseCheckpoint | None) -> dict[tuple[str, int], AdaptedModule]:
    """What the parts mean on the base, as far as they fit it."""
    found: dict[tuple[str, int], AdaptedModule] = {}
    for part in folder.parts if base else []:
        try:
            assert base is not None
            found[part.module, part.level] = next(iter(folder._meant(part, base)))
        except Unreadable:
            continue
    return found


def _row(folder: AdapterFolder, part: Part, base: BaseCheckpoint | None, meant: AdaptedModule | None) -> Row:
    config, keys = folder.config, [*part.keys.values(), *part.whole.values()]
    factors = {name: folder.tensors.tensor(key) for name, key in part.keys.items()}
    rank = config.rank(part.module) if config.method.has_rank and part.keys else None
    alpha = config.alpha(part.module) if config.method.alpha and part.keys else None
    scale = config.method.scale(folder.alone(part, factors)) if part.keys else None
    norm, share = _measured(base, meant)
    if norm is None and alpha is not None:
        norm = _norm(factors, scale)
    dtypes = sorted({str(folder.tensors.dtype(key)).removeprefix("torch.") for key in keys})
    numbers = sum(math.prod(folder.tensors.shape(key)) for key in keys)
    odd = "; ".join(_oddities(folder, part, factors, base))
    return Row(part.module, rank, alpha, scale, numbers, ", ".join(dtypes), norm, share, odd)


def _norm(factors: dict[str, Tensor], scale: float | None) -> float | None:
    """‖s B A‖, whatever the layout of the weight that it is added to."""
    A, B = (factors.get(n, factors.get(f"embedding_{n}")) for n in ("A", "B"))
    if A is None or B is None or scale is None:
        return None
    A, B = (
        A.double().flatten(1) if A.dim() > 1 else A.double(),
        B.double().flatten(1) if B.dim() > 1 else B.double(),
    )
    if A.dim() != 2 or B.dim() != 2 or B.shape[1] != A.shape[0]:
        return None
    return abs(scale) * LowRank(B, A).norm()


def _measured(base: BaseCheckpoint | None, meant: AdaptedModule | None) -> tuple[float | None, float | None]:
    """‖W' - W‖ of the module's adapted weight, and its share of ‖W‖, over blocks of rows."""
    if base is None or meant is None:
        return None, None
    name, update = next(iter(meant.updates().items()))
    stored = base.stored(name)
    assert stored is not None
    matrix = update.matrix(base.tensors.shape(stored))
    update.prepare(lambda: ((at, W.double()) for at, W in base.tensors.blocks(stored, matrix)))
    change = size = 0.0
    for at, block in base.tensors.blocks(stored, matrix):
        W = block.double()
        change += float((update.rows(W, at) - W).square().sum())
        size += float(W.square().sum())
    return math.sqrt(change), math.sqrt(change / size) if size else None


def _oddities(
    folder: AdapterFolder, part: Part, factors: dict[str, Tensor], base: BaseCheckpoint | None
) -> Iterator[str]:
    for name, factor in factors.items():
        if factor.numel() == 0:
            yield f"{name} is empty"
        elif not bool(torch.isfinite(factor).all()):
            yield f"{name} holds values that are not finite"
        elif not bool(factor.any()):
            yield "B = 0: the update is zero" if name.endswith("B") else f"{name} = 0"
    yield from folder.config.method.oddities(factors)
    if base is not None:
        yield from _against(folder, part, base)


def _against(folder: AdapterFolder, part: Part, base: BaseCheckpoint) -> Iterator[str]:
    try:
        list(folder._meant(part, base))
    except Unreadable as why:
        yield str(why)


def _of_the_whole(folder: AdapterFolder, base: BaseCheckpoint | None) -> Iterator[str]:
    """What is odd about the file rather than about one module."""
    config = folder.config
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in config.data.get(field) or {}:
            single = type(config)(config.path, {**config.data, field: {pattern: -1}})
            read = single.rank if field == "rank_pattern" else single.alpha
            if not any(read(part.module) == -1 for part in folder.parts):
                yield f"{field} {pattern!r} names no module of the file"
    kinds = {folder.tensors.dtype(key) for part in folder.parts for key in part.keys.values()}
    if len(kinds) > 1:
        yield f"factors of several dtypes: {', '.join(sorted(str(k).removeprefix('torch.') for k in kinds))}"
    if base is not None:
        held = {part.module for part in folder.parts}
        for module in base.modules:
            if config.lists_targets and config.is_target(module) and module not in held:
                yield f"the configuration is for {module} too, and the file holds no tensors for it"


def _print(folder: AdapterFolder, found: list[Row], oddities: list[str]) -> None:
    console = Console(width=None if Console().is_terminal else 160)
    config = folder.config
    total = sum(row.numbers for row in found)
    parts = [config.method.id, f"r={config.default_rank}" if config.default_rank else ""]
    if config.method.alpha:
        parts += [
            f"alpha={config.default_alpha:g}",
            "rslora (α/√r)" if config.data.get("use_rslora") else "α/r",
        ]
    console.print(f"{' '.join(p for p in parts if p)}: {len(found)} modules, {total:,} numbers")
    table = Table("module", "rank", "alpha", "scale", "numbers", "dtype", "‖ΔW‖", "‖ΔW‖/‖W‖", "odd", box=None)
    for row in found:
        cells = (row.rank, row.alpha, row.scale, row.numbers, row.dtype, row.norm, row.share, row.odd)
        table.add_row(row.module, *(_cell(value) for value in cells))
    console.print(table)
    for odd in oddities:
        console.print(f"odd: {odd}")


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"

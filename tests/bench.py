"""lora_lite beside PEFT, forward + backward of one linear layer: ``python -m tests.bench``, ``make bench``.

Both run in one process, one step each in alternating order; a row's ratio is the median over the pairs, so
that a slow spell of the machine falls on both sides. The floor is the bare frozen linear layer, paired
likewise: floor / PEFT is the least ratio that any adapter on this layer could reach, and "added" compares
what each puts on top of the floor.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.subjects.lora_lite import LoraLite
from oracles.implementation import AdapterSpec
from oracles.peft import Peft

ROWS: dict[str, dict[str, Any]] = {
    "lora": {},
    "pissa": {},
    "dora": {},
    "ia3": {},
    "ia3 feed-forward": {"feedforward": True},
    "hra": {},
    "hra gram-schmidt": {"gram_schmidt": True},
    "delora": {},
}
COLUMNS = (
    "variant",
    "lora_lite ms",
    "PEFT ms",
    "linear ms",
    "lora_lite / PEFT",
    "at most",
    "floor / PEFT",
    "added / PEFT's",
    "kept MiB",
    "PEFT's",
)
LIMITS = {"hra": 0.15, "dora": 0.45}  # of PEFT's time; 1.05 for the others


@dataclass(frozen=True)
class Case:
    """One layer, its input and the gradient of its output."""

    base: nn.Linear
    x: Tensor
    dy: Tensor


def make_case(size: int, tokens: int) -> Case:
    """A seeded layer (size, size) with bias, and ``tokens`` rows."""
    torch.manual_seed(0)
    base = nn.Linear(size, size)
    return Case(base, torch.randn(tokens, size, requires_grad=True), torch.randn(tokens, size))


def step(module: nn.Module, case: Case) -> None:
    """One forward and backward pass."""
    module.zero_grad(set_to_none=True)
    case.x.grad = None
    y = module(case.x)
    if y.requires_grad:
        y.backward(case.dy)


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(sides: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Times of each side; the order turns round with every round, and the first rounds warm up."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 3):
        order = list(range(len(sides)))
        for side in order if turn % 2 else reversed(order):
            spent = seconds(sides[side])
            if turn >= 3:
                times[side].append(spent)
    return times


def saved_bytes(module: nn.Module, case: Case) -> int:
    """Bytes kept for the backward pass: each storage once, parameters and buffers not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or the address could be given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(case.x)
    return sum(kept.values())


def perturb(module: nn.Module) -> None:
    """Move the trainable tensors off their start, where factors are zero and pairs cancel."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)


def measure(row: str, case: Case, rank: int, rounds: int) -> str:
    """One line of the table."""
    spec = AdapterSpec(row.split()[0], rank=rank, alpha=2.0 * rank, **ROWS[row])
    ours = LoraLite().adapt(deepcopy(case.base), spec).module
    peft = Peft().adapt(deepcopy(case.base), spec).module
    floor = deepcopy(case.base).requires_grad_(False)
    modules = [ours, peft, floor]
    for module in modules:
        perturb(module)
    times = paired([partial(step, module, case) for module in modules], rounds)
    return line(row, times, [saved_bytes(module, case) for module in modules])


def median_ratio(top: list[float], bottom: list[float]) -> float:
    """The median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def line(row: str, times: list[list[float]], kept: list[int]) -> str:
    """Milliseconds, ratios and bytes, as a row of a markdown table; what misses its limit carries a mark."""
    ours, peft, floor = times
    limit = LIMITS.get(row, 1.05)
    ratio = median_ratio(ours, peft)
    added = statistics.median(o - f for o, f in zip(ours, floor, strict=True)) / statistics.median(
        p - f for p, f in zip(peft, floor, strict=True)
    )
    cells = [
        row,
        *(f"{1e3 * statistics.median(t):.2f}" for t in times),
        f"{ratio:.3f}" + (" !" if ratio > limit else ""),
        f"{limit:.2f}",
        f"{median_ratio(floor, peft):.3f}",
        f"{added:.2f}",
        f"{kept[0] / 2**20:.2f}" + (" !" if kept[0] > kept[1] else ""),
        f"{kept[1] / 2**20:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def processor() -> tuple[str, int]:
    """Name and number of the processors, where the system says so."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return (names[0], len(names)) if names else (platform.processor(), os.cpu_count() or 1)


def machine() -> str:
    """Processor, cores, threads in use, and versions."""
    name, cores = processor()
    used = f"{cores} cores, {torch.get_num_threads()} in use"
    return f"{name}, {used}; torch {torch.__version__}, {Peft().name} {Peft().version}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="lora_lite beside PEFT: time and bytes of one layer's step")
    parser.add_argument("--size", type=int, default=1024, help="in_features and out_features")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--no-input-grad", action="store_true", help="as for a model's first layer")
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := sorted(set(args.rows) - set(ROWS)):
        parser.error(f"unknown rows {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    case = make_case(args.size, args.tokens)
    case.x.requires_grad_(not args.no_input_grad)
    x = "x without gradient" if args.no_input_grad else "x with gradient"
    print(machine())
    print(f"{args.size} x {args.size}, {args.tokens} tokens, rank {args.rank}, fp32, forward + backward,")
    print(f"{x}, median of {args.rounds} pairs\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in args.rows:
        print(measure(row, case, args.rank, args.rounds), flush=True)


if __name__ == "__main__":
    main()

"""lora_lite beside PEFT: what each adds to the plain frozen layer or model. ``python -m tests.bench``, ``make bench``.

One step is a forward and a backward pass in which the input needs a gradient too. The plain frozen one, ours and
PEFT's take a step each in turn, in one process and in alternating order, so that a slow spell of the machine falls on
all three; the times are medians, and "added" is the median over the rounds of what one takes beyond the plain one.
``--clock cpu`` counts the thread's processor time, for a machine that others use too. Peaks are the allocator's own
count over one step, without what was allocated before it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lora_lite
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
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LIMITS = {"hra": 0.05, "dora": 0.45}  # of what PEFT's adds in time; 1 for the others, and for every peak
COLUMNS = (
    "variant",
    "plain ms",
    "lora_lite adds ms",
    "PEFT adds ms",
    "ratio",
    "at most",
    "whole / PEFT's",
    "lora_lite adds MiB",
    "PEFT adds MiB",
    "ratio",
)
Step = Callable[[], None]


@dataclass
class Side:
    """One of those that take turns: its step, and the times of its steps in seconds."""

    step: Step
    times: list[float] = field(default_factory=list)


def layer_step(module: nn.Module, x: Tensor, dy: Tensor) -> None:
    """One forward and backward pass of a layer."""
    module.zero_grad(set_to_none=True)
    x.grad = None
    y = module(x)
    if y.requires_grad:
        y.backward(dy)


def model_step(model: nn.Module, ids: Tensor) -> None:
    """One forward and backward pass of a language model."""
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()


def layer_sides(row: str, args: argparse.Namespace) -> list[Step]:
    """The plain layer, ours and PEFT's."""
    torch.manual_seed(0)
    base = nn.Linear(args.size, args.size).requires_grad_(False)
    x = torch.randn(args.tokens, args.size, requires_grad=not args.no_input_grad)
    dy, spec = torch.randn(args.tokens, args.size), spec_of(row, args.rank)
    modules = [base, *(who.adapt(deepcopy(base), spec).module for who in (LoraLite(), Peft()))]
    return [partial(layer_step, perturbed(module), x, dy) for module in modules]


def llama() -> nn.Module:
    """Four layers of SmolLM2-135M's width, frozen, with a gradient for the embeddings' output."""
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=512,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).requires_grad_(False)


def model_sides(row: str, args: argparse.Namespace) -> list[Step]:
    """The plain model, ours and PEFT's; (IA)³ gates down_proj at its input."""
    ids, spec = torch.randint(512, (2, 256)), spec_of(row, args.rank)
    models = [llama(), *(adapted_model(who, spec) for who in (LoraLite(), Peft()))]
    for model in models:
        model.enable_input_require_grads()
    return [partial(model_step, perturbed(model), ids) for model in models]


def adapted_model(who: LoraLite | Peft, spec: AdapterSpec) -> nn.Module:
    """A Llama whose linear layers are all adapted."""
    model = llama()
    if spec.variant == "ia3" and isinstance(who, LoraLite):
        lora_lite.attach(model, lora_lite.IA3Config(targets=PROJECTIONS, feedforward=["down_proj"]))
    elif spec.variant == "ia3":
        import peft

        config = peft.IA3Config(target_modules=list(PROJECTIONS), feedforward_modules=["down_proj"])
        peft.get_peft_model(model, config)
    else:
        who.adapt_model(model, spec, PROJECTIONS)
    return model


def second_sides(row: str, args: argparse.Namespace) -> list[Step]:
    """Ours with one adapter, and with a second one that is not active."""
    ids, spec = torch.randint(512, (2, 256)), spec_of(row, args.rank)
    models = [adapted_model(LoraLite(), spec) for _ in range(2)]
    config = next(iter(lora_lite.adapters(models[1]).values())).config
    lora_lite.attach(models[1], replace(config, targets=PROJECTIONS), "second")
    for model in models:
        model.enable_input_require_grads()
    return [partial(model_step, perturbed(model), ids) for model in models]


def spec_of(row: str, rank: int) -> AdapterSpec:
    return AdapterSpec(row.split()[0], rank=rank, alpha=2.0 * rank, **ROWS[row])


def perturbed(module: nn.Module) -> nn.Module:
    """The trainable tensors moved off their start, where factors are zero and pairs cancel."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return module


def take_turns(steps: Sequence[Step], rounds: int, clock: Callable[[], float]) -> list[Side]:
    """The order turns round with every round; the first two warm up."""
    sides = [Side(step) for step in steps]
    for turn in range(rounds + 2):
        for side in sides if turn % 2 else sides[::-1]:
            start = clock()
            side.step()
            spent = clock() - start
            if turn >= 2:
                side.times.append(spent)
    return sides


def peak(step: Step) -> int:
    """The most bytes that one step holds at a time, beyond those from before it."""
    step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def over(top: list[float], bottom: list[float]) -> list[float]:
    return [a - b for a, b in zip(top, bottom, strict=True)]


def line(row: str, steps: list[Step], args: argparse.Namespace) -> str:
    """A row of the markdown table; what misses its limit carries a mark."""
    plain, ours, peft = take_turns(steps, args.rounds, args.clock)
    low, mine, its = (peak(step) / 2**20 for step in steps)
    adds = [statistics.median(over(side.times, plain.times)) for side in (ours, peft)]
    limit, time_ratio, peak_ratio = (
        LIMITS.get(row.split()[0], 1.0),
        adds[0] / adds[1],
        (mine - low) / (its - low),
    )
    cells = [
        row,
        f"{1e3 * statistics.median(plain.times):.1f}",
        *(f"{1e3 * added:.2f}" for added in adds),
        f"{time_ratio:.2f}" + (" !" if time_ratio > limit else ""),
        f"{limit:.2f}",
        f"{median_ratio(ours, peft):.3f}",
        *(f"{held - low:.2f}" for held in (mine, its)),
        f"{peak_ratio:.2f}" + (" !" if peak_ratio > 1 else ""),
    ]
    return "| " + " | ".join(cells) + " |"


def median_ratio(top: Side, bottom: Side) -> float:
    """The median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(top.times, bottom.times, strict=True))


def second_line(row: str, args: argparse.Namespace) -> str:
    one, two = take_turns(second_sides(row, args), args.rounds, args.clock)
    medians = (1e3 * statistics.median(side.times) for side in (one, two))
    return "| " + " | ".join([row, *(f"{m:.1f}" for m in medians), f"{median_ratio(two, one):.3f}"]) + " |"


def table(title: str, columns: Sequence[str], rows: Sequence[str], make: Callable[[str], str]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print(make(row), flush=True)


def processor() -> tuple[str, int]:
    """Name and number of the processors, where the system says so."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return (names[0], len(names)) if names else (platform.processor(), os.cpu_count() or 1)


def machine() -> str:
    """Processor, cores, threads in use, how busy it is, and versions."""
    name, cores = processor()
    used = f"{cores} cores, {torch.get_num_threads()} in use, load {os.getloadavg()[0]:.1f}"
    return f"{name}, {used}; torch {torch.__version__}, {Peft().name} {Peft().version}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="lora_lite beside PEFT: what each adds in time and in peak memory"
    )
    parser.add_argument(
        "--size", type=int, default=1024, help="in_features and out_features of the single layer"
    )
    parser.add_argument("--tokens", type=int, default=512, help="rows of the single layer's input")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--tables", default="layer,model,second", help="comma-separated")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument(
        "--no-input-grad", action="store_true", help="the single layer as a model's first one"
    )
    args = parser.parse_args()
    args.rows = args.rows.split(",")
    if unknown := sorted(set(args.rows) - set(ROWS)):
        parser.error(f"unknown rows {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu counts one thread; it needs --threads 1")
    args.clock = time.perf_counter if args.clock == "wall" else time.thread_time
    return args


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments()
    torch.set_num_threads(args.threads)
    clock = "wall clock" if args.clock is time.perf_counter else "the thread's processor time"
    print(f"{machine()}\nfp32, rank {args.rank}, {args.rounds} rounds, {clock}")
    whole = [row for row in args.rows if row != "ia3 feed-forward"]
    if "layer" in args.tables:
        title = f"One layer, {args.size} x {args.size} with bias, {args.tokens} tokens"
        table(title, COLUMNS, args.rows, lambda row: line(row, layer_sides(row, args), args))
    if "model" in args.tables:
        title = (
            "A Llama of 4 layers, hidden 576, intermediate 1536, all linear layers adapted, 2 x 256 tokens"
        )
        table(title, COLUMNS, whole, lambda row: line(row, model_sides(row, args), args))
    if "second" in args.tables:
        columns = ("variant", "one adapter ms", "a second, inactive ms", "ratio")
        table("The same Llama, lora_lite alone", columns, whole, partial(second_line, args=args))


if __name__ == "__main__":
    main()

"""By hand: verify-merge beside deltalint on the same merges, right and wrong, as a markdown table.

    python -m tests.vectors.beside_deltalint --python PATH/TO/ITS/bin/python

deltalint is installed in an environment of its own (`pip install deltalint==0.1.0 numpy`), and asked through its
command line, all merges by one process. Right merges are PEFT's
own ``merge_and_unload``, wrong ones are made from them. The base is one small model in each dtype.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.checkpoints import merge_judgement as judgement
from harness.checkpoints.verify_merge import Verification, exit_code

Tensors = dict[str, Tensor]


class Small(nn.Module):
    """Two linear layers, a table of vectors, a convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(200, 96)
        self.q_proj = nn.Linear(96, 160)
        self.k_proj = nn.Linear(160, 72, bias=False)
        self.conv = nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(72, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.k_proj(self.q_proj(self.embed_tokens(x))))


QK = ["q_proj", "k_proj"]


def _lora(**more: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 6, "lora_alpha": 20, "target_modules": QK, **more})


METHODS: dict[str, Callable[[], Any]] = {
    "LoRA": _lora,
    "rsLoRA": lambda: _lora(use_rslora=True),
    "rank and alpha patterns": lambda: _lora(rank_pattern={"q_proj": 3}, alpha_pattern={"k_proj": 4}),
    "lora_bias": lambda: _lora(lora_bias=True, target_modules=["q_proj"]),
    "embedding": lambda: _lora(target_modules=["embed_tokens", "q_proj"]),
    "modules_to_save": lambda: _lora(modules_to_save=["head"]),
    "Conv2d": lambda: _lora(target_modules=["conv", "q_proj"]),
    "DoRA": lambda: _lora(use_dora=True),
    "PiSSA": lambda: _lora(init_lora_weights="pissa"),
    "(IA)³": lambda: peft.IA3Config(target_modules=QK, feedforward_modules=["k_proj"]),
    "HRA": lambda: peft.HRAConfig(r=4, target_modules=QK),
    "DeLoRA": lambda: peft.DeloraConfig(r=4, target_modules=QK),
    "VeRA": lambda: peft.VeraConfig(r=16, target_modules=QK),
}


@dataclass(frozen=True)
class Merge:
    """Three folders, and whether the merge is right."""

    name: str
    base: Path
    adapter: Path
    merged: Path
    right: bool


def _write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def _move(model: nn.Module, size: float) -> None:
    """Every trained tensor away from its start, by about ``size`` of it."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.randn_like(p)
            if "lora_B" in name or "lora_embedding" in name or "vera_lambda_b" in name:
                p.add_(size * 0.2 * noise)
            elif "delora_B" in name or "vera_lambda_d" in name:
                p.copy_(noise)
            elif "delora_lambda" in name:
                p.fill_(4 * size)
            elif "ia3" in name:
                p.add_(size * noise)
            else:
                p.add_(size * noise * p.std())


def _made(method: str, dtype: torch.dtype, size: float, home: Path, seed: int = 0) -> Merge:
    torch.manual_seed(0)
    model = Small().to(dtype)
    fresh = copy.deepcopy(model)
    base = _write(home / "base", model.state_dict())
    torch.manual_seed(1 + seed)
    tuned = peft.get_peft_model(model, METHODS[method]())
    _move(tuned, size)
    tuned.save_pretrained(home / f"adapter{seed}")
    loaded = peft.PeftModel.from_pretrained(fresh, str(home / f"adapter{seed}"))
    merged = _write(home / f"merged{seed}", loaded.merge_and_unload().state_dict())
    return Merge(f"{method}, as PEFT merges it", base, home / f"adapter{seed}", merged, True)


def _spoiled(right: Merge, name: str, spoil: Callable[[Tensors, Tensors], Tensors]) -> Merge:
    base, merged = (load_file(folder / "model.safetensors") for folder in (right.base, right.merged))
    method = right.name.partition(",")[0]
    folder = right.merged.parent / name.replace(" ", "_").replace("/", "_")
    return Merge(f"{method}, {name}", right.base, right.adapter, _write(folder, spoil(base, merged)), False)


def _share(factor: float, only: str = "") -> Callable[[Tensors, Tensors], Tensors]:
    def spoil(base: Tensors, merged: Tensors) -> Tensors:
        def mixed(name: str) -> Tensor:
            if only not in name:
                return merged[name]
            whole = base[name].double() + factor * (merged[name].double() - base[name].double())
            return whole.to(base[name].dtype)

        return {name: mixed(name) for name in base}

    return spoil


def _four_bits(W: Tensor) -> Tensor:
    if W.dim() < 2 or W.numel() % 64:
        return W
    runs = W.double().reshape(-1, 64)
    unit = runs.abs().amax(1, keepdim=True) / 7
    return ((runs / unit).round() * unit).reshape(W.shape).to(W.dtype)


def merges(home: Path) -> Iterator[Merge]:
    """Right ones of every method and dtype, wrong ones of the methods that are added, and of those that are not."""
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for method in METHODS:
            place = home / kind / method.replace(" ", "_")
            right = _made(method, dtype, 0.3, place)
            yield Merge(f"{right.name} ({kind})", right.base, right.adapter, right.merged, True)
            yield _spoiled(right, f"not applied ({kind})", _share(0))
            yield _spoiled(right, f"one layer left out ({kind})", _share(0, _second(method)))
            yield _spoiled(right, f"twice the update ({kind})", _share(2))
            yield _spoiled(right, f"0.3 of the update ({kind})", _share(0.3))
            other = _made(method, dtype, 0.3, place, seed=1)
            yield Merge(f"{method}, another adapter ({kind})", right.base, right.adapter, other.merged, False)
    place = home / "small"
    small = _made("LoRA", torch.bfloat16, 0.001, place)
    yield Merge(
        "LoRA below bfloat16's rounding, as PEFT merges it", small.base, small.adapter, small.merged, True
    )
    yield _spoiled(small, "below the rounding, not applied", _share(0))
    large = _made("LoRA", torch.bfloat16, 3.0, home / "grid")
    yield _spoiled_right(large, "on a 4-bit grid afterwards")
    yield _spoiled(
        large,
        "the base on a 4-bit grid, the update lost",
        lambda base, _: {n: _four_bits(t) for n, t in base.items()},
    )


def _spoiled_right(right: Merge, name: str) -> Merge:
    """Quantised and still holding the update in the tensors that are adapted."""
    base, merged = (load_file(folder / "model.safetensors") for folder in (right.base, right.merged))
    coarse = {n: _four_bits(t) if n.startswith(tuple(QK)) else base[n] for n, t in merged.items()}
    return Merge(
        f"LoRA, {name}", right.base, right.adapter, _write(right.merged.parent / "grid", coarse), True
    )


def _second(method: str) -> str:
    return {
        "lora_bias": "q_proj.bias",
        "embedding": "embed",
        "modules_to_save": "head",
        "Conv2d": "conv",
    }.get(method, "k_proj")


def _ours(merge: Merge) -> str:
    try:
        verification = Verification(merge.base, merge.adapter, merge.merged)
        found = list(verification)
    except Exception as error:
        return f"2: {error}"
    verdicts = sorted({j.verdict for j in found if j.verdict != judgement.VERIFIED}) or [judgement.VERIFIED]
    return f"{exit_code(found)}: {', '.join(verdicts)}"


# Run by deltalint's own interpreter: each line of the input is the arguments of one call of its command line.
ASK_ALL = """
import contextlib, io, json, sys
from deltalint.cli import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(json.loads(line))
        except SystemExit as stopped:
            code = stopped.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def _theirs(python: str, asked: list[Merge]) -> list[str]:
    lines = [
        json.dumps(
            ["check", "--base", str(m.base), "--adapter", str(m.adapter), "--merged", str(m.merged), "--json"]
        )
        for m in asked
    ]
    command = [python, "-W", "ignore", "-c", ASK_ALL]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    return [_short(*json.loads(line)) for line in done.stdout.splitlines()]


def _short(code: int, out: str, err: str) -> str:
    try:
        layers = json.loads(out)["layers"]
    except (ValueError, KeyError):
        return f"{code}: {(err or out).strip().splitlines()[-1][:60]}"
    words = sorted({str(la.get("diagnosis") or la["verdict"]) for la in layers})
    return f"{code}: {', '.join(words)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    python = parser.parse_args().python
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        asked = list(merges(Path(home)))
        found = [(m, theirs, _ours(m)) for m, theirs in zip(asked, _theirs(python, asked), strict=True)]
    _summary(found)
    print("\n| merge | right | deltalint 0.1.0 | verify-merge |\n|---|---|---|---|")
    for merge, theirs, ours in found:
        print(f"| {merge.name} | {'yes' if merge.right else 'no'} | {theirs} | {ours} |")


WORDS = {
    (True, "0"): "accepted",
    (True, "1"): "accused",
    (False, "0"): "passed",
    (False, "1"): "named",
    (True, "2"): "not read",
    (False, "2"): "not read",
}


def _summary(found: list[tuple[Merge, str, str]]) -> None:
    print("| merges of | right | deltalint 0.1.0 | verify-merge | wrong | deltalint 0.1.0 | verify-merge |")
    print("|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(m.name.partition(",")[0] for m, _, _ in found):
        mine = [entry for entry in found if entry[0].name.partition(",")[0] == method]
        cells = [f"| {method}"]
        for right in (True, False):
            part = [entry for entry in mine if entry[0].right == right]
            cells += [str(len(part)), *(_counted(right, [entry[i] for entry in part]) for i in (1, 2))]
        print(" | ".join(cells) + " |")


def _counted(right: bool, answers: list[str]) -> str:
    words = Counter(WORDS.get((right, answer[0]), "undecided") for answer in answers)
    return ", ".join(f"{n} {word}" for word, n in sorted(words.items()))


if __name__ == "__main__":
    main()

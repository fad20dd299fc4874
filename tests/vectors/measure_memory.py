"""By hand: how much memory verify-merge takes on a checkpoint much larger than that.

    python -m tests.vectors.measure_memory --gigabytes 10 --adapted 8

Writes a base, an adapter and its merge into a temporary folder, in shards of one tensor each, and verifies them. The
pages of the files that a process maps are the system's to take back; they are told beside what is the process's own.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.checkpoints.verify_merge import Verification, exit_code

ROWS, COLUMNS, RANK = 8192, 12288, 8


def resident() -> tuple[float, float]:
    """Gigabytes of this process: its own, and together with the pages of files that it maps at the moment."""
    status = Path("/proc/self/status").read_text()
    found = [re.search(rf"{field}:\s+(\d+)", status) for field in ("RssAnon", "VmRSS")]
    own, together = (int(match[1]) / 2**20 if match else 0.0 for match in found)
    return own, together


def write(home: Path, count: int, adapted: int) -> None:
    """``count`` layers of 8192 x 12288 in bfloat16, the first ``adapted`` of them with an adapter."""
    index: dict[str, dict[str, str]] = {"base": {}, "merged": {}}
    factors = {}
    for part in index:
        (home / part).mkdir()
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        W = torch.randn(ROWS, COLUMNS, generator=generator).bfloat16()
        A, B = (
            torch.randn(RANK, COLUMNS, generator=generator),
            torch.randn(ROWS, RANK, generator=generator) * 0.01,
        )
        new = W
        if i < adapted:
            factors |= {f"base_model.model.l{i}.lora_A.weight": A, f"base_model.model.l{i}.lora_B.weight": B}
            new = (W.float() + 2 * B @ A).bfloat16()
        for part, tensor in (("base", W), ("merged", new)):
            save_file({f"l{i}.weight": tensor}, home / part / f"model-{i}.safetensors")
            index[part][f"l{i}.weight"] = f"model-{i}.safetensors"
    for part, weight_map in index.items():
        (home / part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (home / "adapter").mkdir()
    save_file(factors, home / "adapter" / "adapter_model.safetensors")
    targets = [f"l{i}" for i in range(adapted)]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (home / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, required=True)
    parser.add_argument("--adapted", type=int, help="how many of the layers; all where it is left out")
    parser.add_argument("--at", type=Path, help="keep the folders here, and take those that are there")
    options = parser.parse_args()
    count = max(int(options.gigabytes * 2**30 / (ROWS * COLUMNS * 2)), 1)
    with tempfile.TemporaryDirectory() as folder:
        home = options.at or Path(folder)
        if not (home / "adapter").exists():
            home.mkdir(parents=True, exist_ok=True)
            write(home, count, min(count, options.adapted or count))
        print(measured(home))


def measured(home: Path) -> str:
    """Verify the merge in ``home``, and what it took."""
    peak, done = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[:] = map(max, peak, resident())

    threading.Thread(target=watch, daemon=True).start()
    start, busy = time.monotonic(), time.process_time()
    verification = Verification(home / "base", home / "adapter", home / "merged")
    found = list(verification)
    seconds, busy = time.monotonic() - start, time.process_time() - busy
    done.set()
    size = sum(p.stat().st_size for p in (home / "base").iterdir()) / 2**30
    took = f"{peak[0]:.2f} GB at most, {peak[1]:.2f} with mapped files, {seconds:.0f} s, {busy:.0f} of them computing"
    changed = len(verification.asked)
    return (
        f"{size:.2f} GB of base, {changed} of {len(found)} tensors adapted, exit {exit_code(found)}: {took}"
    )


if __name__ == "__main__":
    main()

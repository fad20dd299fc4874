"""Reads the checkpoint vectors with numpy alone: LoRA on linear layers, merged and compared.

    python docs/consume_vectors.py refs/vectors

A consumer in another language needs no more than this: JSON, and the safetensors container (eight bytes of length,
a JSON header with dtype, shape and offsets, then the numbers in little-endian order).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            raw = data[start + first : start + last]
            if entry["dtype"] == "BF16":  # the upper half of a float32
                numbers = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                numbers = np.frombuffer(raw, NUMBERS[entry["dtype"]])
            found[name] = numbers.reshape(entry["shape"])
    return found


def by_pattern(patterns: dict, module: str, default: float) -> float:
    hits = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    return hits[0] if hits else default


def merge(base: dict[str, np.ndarray], adapter: Path) -> dict[str, np.ndarray]:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    factors, merged = read_tensors(adapter / "adapter_model.safetensors"), dict(base)
    for key in (k for k in factors if k.endswith(".lora_A.weight")):
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = by_pattern(config["rank_pattern"], module, config["r"])
        alpha = by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        A, B = (factors[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        merged[f"{module}.weight"] = base[f"{module}.weight"] + scale * B @ A
    return merged


def main(home: Path) -> int:
    asked = right = 0
    for name in json.loads((home / "corpus.json").read_text())["vectors"]:
        folder = home / "vectors" / name
        about = json.loads((folder / "vector.json").read_text(encoding="utf-8"))
        flags = about["flags"]
        simple = flags["method"] == "lora" and flags["layers"] == ["linear"] and about["expect"] == "apply"
        if not simple or flags["bias"] or flags["modules_to_save"] or flags["tied"]:
            continue
        files = sorted((home / "bases" / about["base"]).glob("*.safetensors"))
        base = {n: t.astype(np.float64) for file in files for n, t in read_tensors(file).items()}
        expected, merged = read_tensors(folder / "expected.safetensors"), merge(base, folder / "adapter")
        wanted = {n.removeprefix("merged/"): t for n, t in expected.items() if n.startswith("merged/")}
        asked += 1
        right += all(np.allclose(merged[n], t, rtol=1e-9, atol=1e-12) for n, t in wanted.items())
    print(f"{right} of {asked} vectors right")
    return int(right != asked)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

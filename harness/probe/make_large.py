"""Write a model of random weights of any size as safetensors shards, without ever holding it: for `--stream`.

python -m harness.probe.make_large FOLDER [--gb 10]
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

HIDDEN, INNER, KEYS = 1024, 16384, 256  # few columns: PiSSA's exact SVDs stay affordable
PER_SHARD = 8  # layers
POOL = 1 << 25  # more than any matrix has entries
BYTES = 2  # bfloat16


def layer_shapes(index: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block of a Llama."""
    at = f"model.layers.{index}."
    linear = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    return {f"{at}{name}.weight": shape for name, shape in linear.items()}


def pool() -> Tensor:
    """Random entries of order 1/√in, from which every matrix takes a stretch of its own."""
    return (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) / HIDDEN**0.5).to(torch.bfloat16)


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], entries: Tensor, seed: int) -> None:
    """One safetensors file: the header's length, the header, then the tensors one after the other."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * BYTES
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in stretches(shapes, entries, seed):
            file.write(piece.view(torch.uint8).numpy().data)


def stretches(shapes: dict[str, tuple[int, ...]], entries: Tensor, seed: int) -> Iterator[Tensor]:
    """For each tensor a random stretch of the pool."""
    generator = torch.Generator().manual_seed(seed)
    for shape in shapes.values():
        size = math.prod(shape)
        start = int(torch.randint(POOL - size + 1, (), generator=generator))
        yield entries[start : start + size]


def write(folder: Path, gigabytes: float) -> int:
    """Shards and a config of at least that size (10⁹ bytes); the number of blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    per_layer = sum(math.prod(s) * BYTES for s in layer_shapes(0).values())
    blocks, entries = math.ceil(gigabytes * 1e9 / per_layer), pool()
    for start in range(0, blocks, PER_SHARD):
        within = range(start, min(start + PER_SHARD, blocks))
        shapes = {name: shape for i in within for name, shape in layer_shapes(i).items()}
        write_shard(folder / f"model-{start // PER_SHARD:05d}.safetensors", shapes, entries, start)
    config = {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": blocks}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return blocks


def main() -> None:
    """Write the model the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m harness.probe.make_large", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=10.0, help="10⁹ bytes at least (default 10)")
    given = parser.parse_args()
    blocks = write(given.folder, given.gb)
    print(f"{given.folder}: {blocks} blocks of a Llama with hidden size {HIDDEN}, bfloat16")


if __name__ == "__main__":
    main()

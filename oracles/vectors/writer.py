"""The corpus on disk: plain JSON and safetensors, the same bytes every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from oracles.vectors.bases import BASES, base_tensors, inputs
from oracles.vectors.catalogue import drafts
from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft
from oracles.vectors.expected import Expected, closest_pair, expect
from oracles.vectors.methods import method_of

VERSION = 1
HOME = Path(__file__).resolve().parents[2] / "refs" / "vectors"


def write_corpus(home: Path) -> list[str]:
    """Bases, inputs and vectors into ``home``, replacing what an earlier run left there; the vectors' ids."""
    for part in ("bases", "inputs", "vectors"):
        shutil.rmtree(home / part, ignore_errors=True)
    return write_vectors(home, BASES.values(), drafts())


def write_vectors(home: Path, bases: Iterable[Config], among: Iterable[Draft]) -> list[str]:
    """These vectors and their bases into the empty folder ``home``; the vectors' ids."""
    for config in bases:
        _write_base(home / "bases" / config["name"], config)
        held = {f"input/{i}": x for i, x in enumerate(inputs(config))}
        _write_tensors(home / "inputs" / f"{config['name']}.safetensors", held)
    names = [_write_vector(home / "vectors" / draft.id, draft) for draft in among]
    _write_json(home / "corpus.json", {"format": 1, "version": VERSION, "vectors": names})
    return names


def _write_base(folder: Path, config: Config) -> None:
    tensors = {n: t.to(getattr(torch, config["dtype"])) for n, t in base_tensors(config).items()}
    _write_json(folder / "config.json", {k: v for k, v in config.items() if k != "shards"})
    count = config.get("shards", 1)
    if count == 1:
        _write_tensors(folder / "model.safetensors", tensors)
        return
    names = sorted(tensors)
    # A module's weight and its bias lie in different shards, the last names in the first one.
    index = {
        name: f"model-{(i + 1) % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(index.values())):
        _write_tensors(folder / file, {n: tensors[n] for n in names if index[n] == file})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
    )


def _write_vector(folder: Path, draft: Draft) -> str:
    _write_adapter(folder / "adapter", draft)
    expected = None if draft.expect == "refuse" else expect(draft)
    if expected:
        _write_tensors(folder / "expected.safetensors", _numbers(expected))
    _write_json(folder / "vector.json", _described(draft, expected))
    return draft.id


def _write_adapter(folder: Path, draft: Draft) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "adapter_config.json", dict(sorted(draft.config.items())))
    _write_tensors(folder / "adapter_model.safetensors", draft.keys)
    for name, content in draft.files.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)


def _numbers(expected: Expected) -> dict[str, Tensor]:
    held = {f"delta/{n}": d for n, d in expected.deltas.items()}
    held |= {f"merged/{n}": d for n, d in expected.merged.items()}
    held |= {f"logits/{i}": y for i, y in enumerate(expected.logits)}
    for wrong in expected.wrong:
        for name, delta in wrong.deltas.items():
            if name not in expected.deltas or not torch.equal(delta, expected.deltas[name]):
                held[f"wrong/{wrong.id}/{name}"] = delta
    return held


def _described(draft: Draft, expected: Expected | None) -> Config:
    config = draft.config
    method = method_of(config)
    assert method is not None, f"{draft.id} is of no method"
    flags: Config = {
        "method": method.id,
        "layers": sorted({m.kind for m in draft.modules}),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in draft.keys.values()}),
        "base_dtype": draft.model["dtype"],
        "rslora": bool(config.get("use_rslora")),
        "rank_pattern": bool(config.get("rank_pattern")),
        "alpha_pattern": bool(config.get("alpha_pattern")),
        "bias": bool(config.get("lora_bias")) or config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
        "tied": bool(draft.model.get("tied")),
        "sharded": "shards" in draft.model,
    }
    described: Config = {"format": 1, "id": draft.id, "base": draft.base, "expect": draft.expect}
    described |= {"source": draft.source, "flags": flags}
    if draft.why:
        described["why_refused"] = draft.why
    if expected:
        described["tensors"] = sorted(expected.deltas)
        described["closest_readings"] = round(closest_pair(expected), 6)
        described["wrong_readings"] = [
            {"id": w.id, "sentence": w.sentence, "distance": round(w.distance, 6), "for": w.id in draft.must}
            for w in expected.wrong
        ]
    return described


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = {name: tensors[name].contiguous().clone() for name in sorted(tensors)}
    path.write_bytes(save(ordered, metadata={"format": "pt"}))

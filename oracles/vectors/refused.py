"""Folders that no consumer may take: each one a right adapter with one thing wrong, and the words for it.

What is wrong with any adapter's tensors or files is shown with LoRA; what is wrong for one method stands with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch

from oracles.vectors.draft import PREFIX, Draft
from oracles.vectors.faults import QK, SILENT
from oracles.vectors.lora import lora

FIRST = f"{PREFIX}{QK[0]}"


def spoiled(
    name: str, why: str, spoil: Callable[[Draft], None], make: Callable[[Draft], Draft] | None = None
) -> Draft:
    """A vector that has to be refused: an adapter, LoRA unless ``make`` writes another, that ``spoil`` spoils."""
    draft = Draft(f"refuse.{name}", "mlp", SILENT, expect="refuse", why=why)
    draft = make(draft) if make else lora(draft, QK, 3, 7.0)
    spoil(draft)
    draft.modules = []
    return draft


def drop(*endings: str) -> Callable[[Draft], None]:
    """Tensors of the first module that are left out."""

    def spoil(draft: Draft) -> None:
        for ending in endings:
            del draft.keys[f"{FIRST}.{ending}"]

    return spoil


def change(ending: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Draft], None]:
    """A tensor of the first module that is another."""

    def spoil(draft: Draft) -> None:
        key = f"{FIRST}.{ending}"
        draft.keys[key] = make(draft.keys[key]).contiguous()

    return spoil


def _add(key: str, *shape: int) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.keys[key] = torch.ones(shape)

    return spoil


def _tensors() -> Iterator[Draft]:
    A, B = "lora_A.weight", "lora_B.weight"
    yield spoiled("missing_A", "a module's lora_A is missing", drop(A))
    yield spoiled("missing_B", "a module's lora_B is missing", drop(B))
    yield spoiled("missing_module", "a module that target_modules names is missing", drop(A, B))
    yield spoiled("extra_module", "tensors for a module that the base lacks", _both("layers.7.q_proj", 5, 7))
    excluded = "tensors for a module that exclude_modules excludes"
    yield spoiled("excluded_module", excluded, lambda d: d.config.update(exclude_modules=["layers.0.q_proj"]))
    yield spoiled("untargeted_module", "tensors for a module that is no target", _both("head", 6, 3))
    yield spoiled("extra_tensor", "a tensor that LoRA does not have", _add(f"{FIRST}.lora_C.weight", 3, 3))
    yield spoiled("renamed_modules", "every module is called otherwise in the base", _rename)
    yield spoiled("separate_for_fused", "adapters of q, k and v for a base that has them fused", *_separate())
    yield spoiled("transposed_A", "lora_A is (in, r)", change(A, lambda t: t.mT))
    yield spoiled("transposed_B", "lora_B is (r, out)", change(B, lambda t: t.mT))
    yield spoiled(
        "other_rank", "lora_A and lora_B of a module have another rank than the file says", _other_rank
    )
    yield spoiled(
        "ranks_differ", "lora_A and lora_B of a module have different ranks", change(A, lambda t: t[:2])
    )
    yield spoiled(
        "other_width", "lora_A is for a layer with more inputs", change(A, lambda t: torch.ones(3, 6))
    )
    yield spoiled(
        "empty_A",
        "lora_A has no rows (a partitioned parameter saved without gathering)",
        change(A, lambda t: t[:0]),
    )
    yield spoiled("empty_flat", "lora_A is empty and flat, (0,)", change(A, lambda t: torch.zeros(0)))
    yield spoiled("one_dimension", "lora_B is flat", change(B, lambda t: t.flatten()))
    yield spoiled("scalar", "lora_B is a single number", change(B, lambda t: t.flatten()[0]))
    yield spoiled("no_tensors", "the file holds no tensors", lambda d: d.keys.clear())


def _both(module: str, inputs: int, outputs: int) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.put(module, "lora_A.weight", torch.ones(3, inputs))
        draft.put(module, "lora_B.weight", torch.ones(outputs, 3))

    return spoil


def _rename(draft: Draft) -> None:
    draft.keys = {key.replace("layers.", "h."): tensor for key, tensor in draft.keys.items()}


def _separate() -> tuple[Callable[[Draft], None], Callable[[Draft], Draft]]:
    def make(draft: Draft) -> Draft:
        draft.base = "fused"
        return lora(draft, ["attn.o_proj"], 3, 7.0, targets=["q_proj", "k_proj", "v_proj", "o_proj"])

    def spoil(draft: Draft) -> None:
        for name, rows in (("q_proj", 8), ("k_proj", 3), ("v_proj", 4)):
            _both(f"attn.{name}", 5, rows)(draft)

    return spoil, make


def _other_rank(draft: Draft) -> None:
    for ending, index in (("lora_A.weight", 0), ("lora_B.weight", 1)):
        key = f"{FIRST}.{ending}"
        draft.keys[key] = draft.keys[key].narrow(index, 0, 2).contiguous()


def _files() -> Iterator[Draft]:
    def replace(name: str, content: bytes | None) -> Callable[[Draft], None]:
        return lambda draft: draft.files.update({name: content})

    weights, config = "adapter_model.safetensors", "adapter_config.json"
    yield spoiled("no_weights", "there is no adapter_model.safetensors", replace(weights, None))
    yield spoiled("no_config", "there is no adapter_config.json", replace(config, None))
    yield spoiled(
        "config_not_json", "adapter_config.json is not JSON", replace(config, b'{"peft_type": "LORA", ')
    )
    yield spoiled(
        "weights_cut_short",
        "the tensors' file is cut short",
        replace(weights, b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
    )
    unknown = json.dumps({"peft_type": "NO_SUCH_METHOD", "r": 3}).encode()
    yield spoiled("unknown_method", "a method that does not exist", replace(config, unknown))


VECTORS = {"refused tensors": _tensors, "refused files": _files}

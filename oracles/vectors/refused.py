"""Folders that no consumer may take: each one a right adapter with one thing wrong, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch

from oracles.vectors.draft import PREFIX, Draft, delora, hra, ia3, lora, vera

QK = ("layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "layers.1.k_proj")
FIRST = f"{PREFIX}layers.0.q_proj"
SOURCE = "loaded without an error and not applied"


def refused() -> Iterator[Draft]:
    """All of them."""
    yield from _tensors()
    yield from _other_methods()
    yield from _files()


def _spoiled(
    name: str, why: str, spoil: Callable[[Draft], None], make: Callable[[Draft], Draft] | None = None
) -> Draft:
    draft = Draft(f"refuse.{name}", "mlp", SOURCE, expect="refuse", why=why)
    draft = make(draft) if make else lora(draft, QK, 3, 7.0)
    spoil(draft)
    draft.modules = []
    return draft


def _drop(*endings: str) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        for ending in endings:
            del draft.keys[f"{FIRST}.{ending}"]

    return spoil


def _set(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        key = f"{FIRST}.{ending}"
        draft.keys[key] = change(draft.keys[key]).contiguous()

    return spoil


def _add(key: str, *shape: int) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.keys[key] = torch.ones(shape)

    return spoil


def _tensors() -> Iterator[Draft]:
    A, B = "lora_A.weight", "lora_B.weight"
    yield _spoiled("missing_A", "a module's lora_A is missing", _drop(A))
    yield _spoiled("missing_B", "a module's lora_B is missing", _drop(B))
    yield _spoiled("missing_module", "a module that target_modules names is missing", _drop(A, B))
    yield _spoiled("extra_module", "tensors for a module that the base lacks", _both("layers.7.q_proj", 5, 7))
    excluded = "tensors for a module that exclude_modules excludes"
    yield _spoiled(
        "excluded_module", excluded, lambda d: d.config.update(exclude_modules=["layers.0.q_proj"])
    )
    yield _spoiled("untargeted_module", "tensors for a module that is no target", _both("head", 6, 3))
    yield _spoiled("extra_tensor", "a tensor that LoRA does not have", _add(f"{FIRST}.lora_C.weight", 3, 3))
    yield _spoiled("renamed_modules", "every module is called otherwise in the base", _rename)
    yield _spoiled(
        "separate_for_fused", "adapters of q, k and v for a base that has them fused", *_separate()
    )
    yield _spoiled("transposed_A", "lora_A is (in, r)", _set(A, lambda t: t.mT))
    yield _spoiled("transposed_B", "lora_B is (r, out)", _set(B, lambda t: t.mT))
    yield _spoiled(
        "other_rank", "lora_A and lora_B of a module have another rank than the file says", _other_rank
    )
    yield _spoiled(
        "ranks_differ", "lora_A and lora_B of a module have different ranks", _set(A, lambda t: t[:2])
    )
    yield _spoiled(
        "other_width", "lora_A is for a layer with more inputs", _set(A, lambda t: torch.ones(3, 6))
    )
    yield _spoiled(
        "empty_A",
        "lora_A has no rows (a partitioned parameter saved without gathering)",
        _set(A, lambda t: t[:0]),
    )
    yield _spoiled("empty_flat", "lora_A is empty and flat, (0,)", _set(A, lambda t: torch.zeros(0)))
    yield _spoiled("one_dimension", "lora_B is flat", _set(B, lambda t: t.flatten()))
    yield _spoiled("scalar", "lora_B is a single number", _set(B, lambda t: t.flatten()[0]))
    yield _spoiled("no_tensors", "the file holds no tensors", lambda d: d.keys.clear())


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


def _other_methods() -> Iterator[Draft]:
    def dora(draft: Draft) -> Draft:
        return lora(draft, QK, 3, 7.0, dora=True)

    m = "lora_magnitude_vector"
    yield _spoiled("dora_without_magnitude", "DoRA's magnitude is missing", _drop(m), dora)
    yield _spoiled(
        "dora_magnitude_of_inputs",
        "the magnitude has one entry per input",
        _set(m, lambda t: torch.ones(5)),
        dora,
    )
    yield _spoiled(
        "dora_flag_off", "a magnitude, and use_dora is false", lambda d: d.config.update(use_dora=False), dora
    )
    gate = lambda d: ia3(d, QK)  # noqa: E731
    yield _spoiled(
        "ia3_other_side",
        "the gate is on the output, its shape is the input's",
        _set("ia3_l", lambda t: torch.ones(1, 5)),
        gate,
    )
    yield _spoiled("ia3_missing", "a gate is missing", _drop("ia3_l"), gate)
    yield _spoiled(
        "hra_other_rank",
        "fewer reflections than the rank",
        _set("hra_u", lambda t: t[:, :2]),
        lambda d: hra(d, QK[:3], 4),
    )
    chain = lambda d: delora(d, QK, 3)  # noqa: E731
    yield _spoiled("delora_without_lambda", "DeLoRA's λ is missing", _drop("delora_lambda"), chain)
    yield _spoiled(
        "vera_without_shared", "VeRA's shared matrices are missing", _without_shared, lambda d: vera(d, QK, 3)
    )


def _without_shared(draft: Draft) -> None:
    for key in ("base_model.vera_A", "base_model.vera_B"):
        del draft.keys[key]


def _files() -> Iterator[Draft]:
    def replace(name: str, content: bytes | None) -> Callable[[Draft], None]:
        return lambda draft: draft.files.update({name: content})

    weights, config = "adapter_model.safetensors", "adapter_config.json"
    yield _spoiled("no_weights", "there is no adapter_model.safetensors", replace(weights, None))
    yield _spoiled("no_config", "there is no adapter_config.json", replace(config, None))
    yield _spoiled(
        "config_not_json", "adapter_config.json is not JSON", replace(config, b'{"peft_type": "LORA", ')
    )
    yield _spoiled(
        "weights_cut_short",
        "the tensors' file is cut short",
        replace(weights, b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
    )
    unknown = json.dumps({"peft_type": "NO_SUCH_METHOD", "r": 3}).encode()
    yield _spoiled("unknown_method", "a method that does not exist", replace(config, unknown))

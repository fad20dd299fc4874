"""Vectors on what any adapter file says of names, prefixes, ties and whole modules, all shown with LoRA."""

from __future__ import annotations

from collections.abc import Iterator

from oracles.vectors.draft import PREFIX, Draft, saved
from oracles.vectors.faults import NAMES, QK, SAVED, SILENT, TIED
from oracles.vectors.lora import lora


def _ties() -> Iterator[Draft]:
    back = {"tie.backwards": {"lm_head": "embed_tokens"}}
    yield lora(Draft("tied.head", "tied", TIED, ("tie.backwards",), moved=back), ["lm_head"], 3, 7.0)
    yield lora(Draft("tied.both", "tied", TIED, ("modules.first_only",)), ["embed_tokens", "lm_head"], 3, 7.0)
    draft = Draft("tied.saved_head", "tied", TIED, ("tie.backwards",), moved=back)
    yield saved(lora(draft, ["layers.0.up_proj"], 3, 7.0, modules_to_save=["lm_head"]), "lm_head")


def _saved() -> Iterator[Draft]:
    up = ["layers.0.up_proj"]
    for name, module in (("head", "lm_head"), ("norm", "norm"), ("embedding", "embed_tokens")):
        draft = lora(Draft(f"saved.{name}", "language", SAVED, ("saved.added", "saved.left_out")), up, 3, 7.0)
        draft.config["modules_to_save"] = [module]
        yield saved(draft, module)
    draft = lora(Draft("saved.classifier", "mlp", SAVED, ("saved.left_out",)), QK[:2], 3, 7.0)
    draft.config["modules_to_save"] = ["head"]
    yield saved(draft, "head")
    draft = lora(Draft("saved.two", "language", SAVED, ("saved.left_out",)), up, 3, 7.0)
    draft.config["modules_to_save"] = ["norm", "lm_head"]
    yield saved(saved(draft, "norm"), "lm_head")


def _layers() -> Iterator[Draft]:
    def layer(i: int) -> list[str]:
        return [f"model.layers.{i}.q_proj", f"model.layers.{i}.o_proj"]

    def moves(a: int, b: int) -> dict[str, str]:
        return dict(zip(layer(a), layer(b), strict=True))

    targets = ["q_proj", "o_proj"]
    for name, chosen, more, wrong in (
        ("one_as_a_number", [1], {"layers_to_transform": 1}, {"layers.prefix": moves(1, 10)}),
        ("one_in_a_list", [1], {"layers_to_transform": [1]}, {"layers.prefix": moves(1, 11)}),
        ("two", [0, 10], {"layers_to_transform": [0, 10]}, {"layers.prefix": moves(10, 1)}),
        (
            "pattern",
            [2, 11],
            {"layers_to_transform": [2, 11], "layers_pattern": "layers"},
            {"layers.from_one": {**moves(2, 1), **moves(11, 10)}},
        ),
        ("by_position", [10], {"layers_to_transform": [10]}, {"layers.position": moves(10, 2)}),
    ):
        draft = Draft(f"layers.{name}", "deep", NAMES, tuple(wrong), moved=wrong)
        modules = [m for i in chosen for m in layer(i)]
        yield lora(draft, modules, 2, 5.0, targets=targets, **more)
    # PEFT looks for an index behind two names, so that it finds none in a model whose blocks lie at the top.
    top = Draft("layers.top_level", "mlp", NAMES, ("modules.first_only",), "apply_or_refuse")
    yield lora(top, QK[2:], 2, 5.0, targets=["q_proj", "k_proj"], layers_to_transform=[1])
    every = [m for i in (0, 1, 2, 10, 11) for m in layer(i)]
    for name, exclude in (("list", layer(1)), ("regex", r"model\.layers\.1\..*")):
        kept = [m for m in every if m not in layer(1)]
        wrong = {"layers.prefix": moves(10, 1)}
        draft = Draft(f"exclude.{name}", "deep", NAMES, ("layers.prefix",), moved=wrong)
        yield lora(draft, kept, 2, 5.0, targets=targets, exclude_modules=exclude)


def _targets() -> Iterator[Draft]:
    names = "names"
    near = {"names.suffix_without_dot": {"encoder.q_proj": "encoder.xq_proj"}}
    prefix = {"names.prefix_of_a_name": {"encoder.q_proj": "encoder.q_proj_norm"}}
    suffix = ["q_proj", "encoder.q_proj", "default.q_proj", "lora_A.q_proj", "my_base_model.q_proj"]
    for name, modules, targets, wrong in (
        ("suffix", suffix, ["q_proj"], near),
        ("longer_suffix", ["encoder.q_proj"], ["encoder.q_proj"], near),
        ("full_names", ["q_proj", "encoder.q_proj"], r"(encoder\.)?q_proj", near),
        ("regex_is_a_full_match", ["encoder.q_proj"], r"encoder\.q_proj", prefix),
        ("regex_alternatives", ["encoder.q_proj", "a.o"], r"(encoder\.q_proj|a\.o)", prefix),
        (
            "regex_x",
            ["encoder.xq_proj"],
            r".*\.xq_proj",
            {"names.other": {"encoder.xq_proj": "encoder.q_proj"}},
        ),
    ):
        draft = Draft(f"targets.{name}", names, NAMES, tuple(wrong), moved=wrong)
        yield lora(draft, modules, 2, 5.0, targets=targets)
    linear = Draft("targets.all_linear", "mlp", NAMES, ("modules.first_only",))
    yield lora(linear, [*QK, "head"], 2, 5.0, targets="all-linear")
    for name, module, other in (
        ("default", "default.q_proj", "a.o"),
        ("lora_A", "lora_A.q_proj", "q_proj"),
        ("base_model", "my_base_model.q_proj", "b.o"),
    ):
        wrong = {"names.stripped": {module: other}}
        draft = Draft(f"names.module_called_{name}", names, NAMES, ("names.stripped",), moved=wrong)
        yield lora(draft, [module], 2, 5.0)


def _prefixes() -> Iterator[Draft]:
    inner, outer = "layers.0.q_proj", "model.layers.0.q_proj"
    for name, module, other in (
        ("model", outer, inner),
        ("none", inner, outer),
        ("model_twice", "model.model.layers.0.q_proj", outer),
    ):
        wrong = {"prefix.stripped_too_far": {module: other}}
        draft = Draft(
            f"prefix.{name}", "wrapped", SILENT, ("prefix.stripped_too_far", "not_applied"), moved=wrong
        )
        yield lora(draft, [module], 2, 5.0, targets=rf"{module.replace('.', '[.]')}")
    for name, rename in (
        ("adapter_name_in_keys", _adapter_name),
        ("no_prefix", lambda key: key.removeprefix(PREFIX)),
        ("one_part_of_the_prefix", lambda key: key.replace(PREFIX, "base_model.")),
        ("data_parallel", lambda key: key.replace(PREFIX, f"{PREFIX}module.")),
        ("compiled", lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod.")),
        ("prefix_twice", lambda key: PREFIX + key),
        ("transformer", lambda key: key.replace(PREFIX, f"{PREFIX}transformer.")),
    ):
        draft = lora(Draft(f"prefix.{name}", "mlp", SILENT, ("not_applied",), "apply_or_refuse"), QK, 3, 7.0)
        draft.keys = {rename(key): tensor for key, tensor in draft.keys.items()}
        yield draft


def _adapter_name(key: str) -> str:
    return key.replace(".weight", ".default.weight")


VECTORS = {
    "other ties": _ties,
    "saved": _saved,
    "layers": _layers,
    "targets": _targets,
    "prefixes": _prefixes,
}

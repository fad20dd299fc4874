"""The vectors, kind by kind. Every one names the public fault it is for and the readings that it must tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from oracles.vectors.bases import layer_of
from oracles.vectors.draft import PREFIX, Draft, delora, experts, hra, ia3, lora, saved, sizes, vera
from oracles.vectors.refused import refused

QK = ("layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "layers.1.k_proj")
ONE = ("layers.0.q_proj",)
SCALE = "scale lost or misread"
PATTERN = "per-layer rank or alpha ignored"
LAYOUT = "weights of another layout"
SILENT = "loaded without an error and not applied"
NAMES = "names matched by accident"
FUSED = "fused projections"
EXPERTS = "stacked expert weights"
BIAS = "a bias left out"
TIED = "tied embeddings"
SAVED = "modules saved whole and lost"
DTYPE = "mixed dtypes"
OTHER = "a method's own equation misread"
Options = tuple[tuple[str, dict[str, Any]], ...]  # a name and what it sets
PLAIN: Options = (("lora", {}), ("rslora", {"rslora": True}), ("dora", {"dora": True}))


def drafts() -> Iterator[Draft]:
    """All vectors, in the corpus' order."""
    for group in GROUPS:
        yield from group()


def _scale() -> Iterator[Draft]:
    must = ("scale.over_root_rank", "scale.alpha", "scale.one")
    for name, rank, alpha in (
        ("alpha_above_rank", 3, 7.0),
        ("alpha_below_rank", 5, 2.0),
        ("alpha_a_fraction", 3, 0.5),
        ("rank_two", 2, 16.0),
        ("rank_above_width", 8, 3.0),
    ):
        yield lora(Draft(f"lora.{name}", "mlp", SCALE, must), QK, rank, alpha)
    yield lora(Draft("lora.rank_one", "mlp", SCALE, ("scale.one",)), QK, 1, 7.0)
    root = ("scale.over_rank", "scale.alpha", "scale.one")
    for name, rank, alpha in (
        ("rank_three", 3, 7.0),
        ("rank_five", 5, 2.0),
        ("rank_two", 2, 16.0),
        ("wide", 8, 3.0),
    ):
        yield lora(Draft(f"rslora.{name}", "mlp", SCALE, root), QK, rank, alpha, rslora=True)
    yield lora(Draft("lora.with_dropout", "mlp", SCALE, must), QK, 3, 7.0, lora_dropout=0.5)
    yield lora(Draft("lora.one_module", "mlp", SILENT, ("not_applied",)), ONE, 2, 3.0)


def _patterns() -> Iterator[Draft]:
    rank, alpha = ("pattern.rank",), ("pattern.alpha",)
    both = ("pattern.rank", "pattern.alpha", "pattern.both")
    q, last = {"q_proj": 5}, {"layers.1.k_proj": 2}
    regex, anchored = {r"layers\.\d+\.q_proj": 5}, {r"^layers\.0\.q_proj": 6}
    for name, ranks in (("suffix", q), ("full_name", last), ("regex", regex), ("anchored", anchored)):
        yield lora(Draft(f"lora.rank_pattern.{name}", "mlp", PATTERN, rank), QK, 3, 7.0, ranks=ranks)
    yield lora(
        Draft("lora.rank_pattern.first_wins", "mlp", PATTERN, rank),
        QK,
        3,
        7.0,
        ranks={"layers.0.q_proj": 4, **q},
    )
    for name, alphas in (
        ("suffix", {"k_proj": 2.0}),
        ("full_name", {"layers.0.q_proj": 20.0}),
        ("regex", {r".*\.1\..*_proj": 3.0}),
        ("first_wins", {"layers.1.q_proj": 1.0, "q_proj": 30.0}),
    ):
        yield lora(Draft(f"lora.alpha_pattern.{name}", "mlp", PATTERN, alpha), QK, 3, 7.0, alphas=alphas)
    for name, rslora in (("plain", False), ("rslora", True)):
        draft = Draft(f"lora.both_patterns.{name}", "mlp", PATTERN, both)
        yield lora(draft, QK, 3, 7.0, ranks=q, alphas={"q_proj": 2.0}, rslora=rslora)
    crossed = Draft("lora.both_patterns.crossed", "mlp", PATTERN, (*rank, *alpha))
    yield lora(crossed, QK, 3, 7.0, ranks=q, alphas={"k_proj": 2.0})
    for name, given in (("rank", {"ranks": q}), ("alpha", {"alphas": {"q_proj": 2.0}})):
        draft = Draft(f"rslora.{name}_pattern", "mlp", PATTERN, (f"pattern.{name}", "scale.over_rank"))
        yield lora(draft, QK, 3, 7.0, rslora=True, **given)
    yield lora(Draft("dora.rank_pattern", "mlp", PATTERN, rank), QK, 3, 7.0, ranks=q, dora=True)
    yield lora(
        Draft("dora.alpha_pattern", "mlp", PATTERN, alpha), QK, 3, 7.0, alphas={"k_proj": 2.0}, dora=True
    )


def _biases() -> Iterator[Draft]:
    must = ("bias.left_out", "bias.unscaled")
    biased = ("layers.0.q_proj", "layers.1.q_proj")
    yield lora(Draft("lora.bias", "mlp", BIAS, must), biased, 3, 7.0, bias=True)
    yield lora(Draft("rslora.bias", "mlp", BIAS, must), biased, 3, 7.0, bias=True, rslora=True)
    conv = Draft("lora.bias.conv2d", "conv", BIAS, must)
    yield lora(conv, ["conv", "wide"], 3, 7.0, bias=True)
    fused = Draft("lora.bias.fused", "fused", BIAS, must)
    yield lora(fused, ["attn.qkv_proj"], 3, 7.0, bias=True)
    for name, modules in (("lora_only", biased), ("all", (*biased, "head"))):
        draft = lora(
            Draft(f"lora.trained_bias.{name}", "mlp", BIAS, ("saved.left_out",)), biased, 3, 7.0, bias=False
        )
        draft.config["bias"] = name
        for module in modules:
            outputs = sizes(layer_of(draft.model, module))[1]
            bias = draft.draw(module, "trained bias", outputs)
            saved(draft, module, {"bias": bias}, "base_layer." if module in biased else "")
        yield draft


def _layouts() -> Iterator[Draft]:
    transposed = ("layout.transposed", "scale.over_root_rank")
    gpt, all_gpt = "gpt", ("h.0.c_attn", "h.0.c_proj", "h.1.c_fc")
    for name, more in (
        ("plain", {}),
        ("rank_pattern", {"ranks": {"c_attn": 2}}),
        ("alpha_pattern", {"alphas": {"c_proj": 2.0}}),
    ):
        draft = Draft(f"lora.conv1d.{name}", gpt, LAYOUT, transposed)
        yield lora(draft, all_gpt, 3, 7.0, fan_in_fan_out=True, **more)
    rs = Draft("rslora.conv1d", gpt, LAYOUT, ("layout.transposed", "scale.over_rank"))
    yield lora(rs, all_gpt, 3, 7.0, fan_in_fan_out=True, rslora=True)
    yield lora(Draft("lora.conv1d.flag_off", gpt, LAYOUT, transposed), all_gpt, 3, 7.0)
    yield lora(Draft("lora.linear.flag_on", "mlp", LAYOUT, transposed), QK, 3, 7.0, fan_in_fan_out=True)
    dora = Draft("dora.conv1d", gpt, LAYOUT, ("dora.plain_lora",))
    yield lora(dora, all_gpt, 3, 7.0, fan_in_fan_out=True, dora=True)
    for name, modules in (("alone", ["embed_tokens"]), ("with_linear", ["embed_tokens", "layers.0.up_proj"])):
        yield lora(Draft(f"lora.embedding.{name}", "language", LAYOUT, transposed), modules, 3, 7.0)
    both = ["embed_tokens", "layers.0.up_proj"]
    embedding = Draft("rslora.embedding", "language", LAYOUT, ("layout.transposed", "scale.over_rank"))
    yield lora(embedding, both, 3, 7.0, rslora=True)
    pattern = Draft("lora.embedding.rank_pattern", "language", PATTERN, ("pattern.rank",))
    yield lora(pattern, both, 3, 7.0, ranks={"embed_tokens": 5})
    yield lora(
        Draft("dora.embedding", "language", LAYOUT, ("dora.plain_lora",)), ["embed_tokens"], 3, 7.0, dora=True
    )
    kernel = ("layout.channels_last", "scale.over_root_rank")
    for name, modules in (
        ("three_by_three", ["conv"]),
        ("strided", ["wide"]),
        ("all", ["conv", "point", "wide"]),
    ):
        yield lora(Draft(f"lora.conv2d.{name}", "conv", LAYOUT, kernel), modules, 3, 7.0)
    yield lora(Draft("lora.conv2d.one_by_one", "conv", LAYOUT, transposed), ["point"], 2, 7.0)
    yield lora(
        Draft("rslora.conv2d", "conv", LAYOUT, ("scale.over_rank",)), ["conv", "point"], 3, 7.0, rslora=True
    )
    ranked = Draft("lora.conv2d.rank_pattern", "conv", PATTERN, ("pattern.rank",))
    yield lora(ranked, ["conv", "point"], 3, 7.0, ranks={"point": 2})
    for name, modules in (("three_by_three", ["conv"]), ("one_by_one", ["point"])):
        yield lora(
            Draft(f"dora.conv2d.{name}", "conv", LAYOUT, ("dora.plain_lora",)), modules, 3, 7.0, dora=True
        )


def _tied() -> Iterator[Draft]:
    follows = ("tie.follows",)
    for name, more in PLAIN:
        draft = Draft(f"tied.embedding_{name}", "tied", TIED, follows, tied="lm_head.weight")
        yield lora(draft, ["embed_tokens"], 3, 7.0, **more)
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
    magnitude = lora(
        Draft("prefix.dora_weight", "mlp", SILENT, ("dora.plain_lora",), "apply_or_refuse"),
        QK,
        3,
        7.0,
        dora=True,
    )
    magnitude.keys = {k + ".weight" * k.endswith("vector"): t for k, t in magnitude.keys.items()}
    yield magnitude


def _adapter_name(key: str) -> str:
    return key.replace(".weight", ".default.weight")


def _fused() -> Iterator[Draft]:
    parts = ("fused.first_only", "fused.order", "fused.interleaved")
    both = ["attn.qkv_proj", "mlp.gate_up_proj"]
    yield lora(Draft("fused.qkv", "fused", FUSED, parts), ["attn.qkv_proj"], 3, 7.0)
    yield lora(Draft("fused.gate_up", "fused", FUSED, parts[:2]), ["mlp.gate_up_proj"], 3, 7.0)
    yield lora(Draft("fused.both", "fused", FUSED, parts), both, 3, 7.0)
    rs = Draft("fused.rslora", "fused", FUSED, ("fused.first_only", "scale.over_rank"))
    yield lora(rs, both, 3, 7.0, rslora=True)
    yield lora(
        Draft("fused.dora", "fused", FUSED, ("fused.first_only", "dora.plain_lora")), both, 3, 7.0, dora=True
    )
    pattern = Draft("fused.rank_pattern", "fused", FUSED, ("pattern.rank", "fused.order"))
    yield lora(pattern, both, 3, 7.0, ranks={"qkv_proj": 5})


def _experts() -> Iterator[Draft]:
    must = ("experts.B_blocks", "experts.A_fast", "experts.reversed", "scale.over_root_rank")
    for layout in ("out_in", "in_out"):
        base = f"experts_{layout}"
        yield experts(Draft(f"experts.{layout}.first", base, EXPERTS, must), ["gate_up_proj"])
        yield experts(Draft(f"experts.{layout}.second", base, EXPERTS, must), ["down_proj"], 3, 4)
        yield experts(Draft(f"experts.{layout}.both", base, EXPERTS, must), ["gate_up_proj", "down_proj"])
        root = ("experts.B_blocks", "scale.over_rank")
        draft = Draft(f"experts.{layout}.rslora", base, EXPERTS, root)
        yield experts(draft, ["gate_up_proj"], 2, 5, use_rslora=True)
        rank_one = Draft(f"experts.{layout}.rank_one", base, EXPERTS, ("experts.reversed", "experts.first"))
        yield experts(rank_one, ["gate_up_proj"], 1, 5)


def _dtypes() -> Iterator[Draft]:
    must = ("scale.over_root_rank", "not_applied")
    half, brain = torch.float16, torch.bfloat16
    for name, base, dtype in (
        ("bf16_base", "mlp_bf16", torch.float32),
        ("fp16_base", "mlp_fp16", torch.float32),
        ("bf16_both", "mlp_bf16", brain),
        ("fp16_both", "mlp_fp16", half),
        ("bf16_adapter", "mlp", brain),
        ("fp16_adapter", "mlp", half),
        ("fp64_adapter", "mlp", torch.float64),
        ("bf16_on_fp16", "mlp_fp16", brain),
    ):
        yield lora(Draft(f"dtype.{name}", base, DTYPE, must, dtype=dtype), QK, 3, 7.0)
    mixed = Draft("dtype.mixed_factors", "mlp", DTYPE, must)
    yield lora(mixed, QK, 3, 7.0, dtypes={"A": brain, "B": torch.float32})
    yield lora(
        Draft("dtype.mixed_dora", "mlp_bf16", DTYPE, ("dora.plain_lora",), dtype=brain),
        QK,
        3,
        7.0,
        dora=True,
        dtypes={"m": torch.float32},
    )
    for name, more in PLAIN:
        yield lora(
            Draft(f"shards.{name}", "sharded", "sharded files", ("modules.first_only",)), QK, 3, 7.0, **more
        )


def _dora() -> Iterator[Draft]:
    must = ("dora.plain_lora", "dora.not_normalised", "dora.norm_of_base", "scale.over_root_rank")
    unbiased, biased = ("layers.0.k_proj", "layers.1.k_proj"), ("layers.0.q_proj", "layers.1.q_proj")
    yield lora(Draft("dora.linear", "mlp", OTHER, must), unbiased, 3, 7.0, dora=True)
    yield lora(Draft("dora.with_bias", "mlp", BIAS, ("dora.bias_scaled", *must)), biased, 3, 7.0, dora=True)
    root = ("scale.over_rank", "dora.norm_of_base")
    yield lora(Draft("dora.rslora", "mlp", SCALE, root), QK, 3, 7.0, dora=True, rslora=True)
    yield lora(Draft("dora.rank_one", "mlp", OTHER, must[:3]), QK, 1, 3.0, dora=True)


def _pissa() -> Iterator[Draft]:
    must = ("pissa.no_residual",)
    yield lora(Draft("pissa.plain", "mlp", OTHER, must), QK, 2, 2.0, pissa=True)
    yield lora(Draft("pissa.alpha", "mlp", SCALE, (*must, "scale.one")), QK, 2, 5.0, pissa=True)
    yield lora(
        Draft("pissa.rslora", "mlp", SCALE, (*must, "scale.over_rank")), QK, 3, 5.0, pissa=True, rslora=True
    )
    yield lora(Draft("pissa.rank_one", "mlp", OTHER, must), QK, 1, 2.0, pissa=True)
    pattern = Draft("pissa.rank_pattern", "mlp", PATTERN, (*must, "pattern.rank"))
    yield lora(pattern, QK, 2, 5.0, pissa=True, ranks={"q_proj": 3})
    # What PEFT writes for a PiSSA adapter converted to LoRA: twice the rank and twice alpha (times √2 with rsLoRA).
    yield lora(Draft("pissa.converted", "mlp", SCALE, ("scale.one",)), QK, 4, 10.0)
    root = Draft("pissa.converted_rslora", "mlp", SCALE, ("scale.over_rank",))
    yield lora(root, QK, 6, 5.0 * 2**0.5, rslora=True)


def _ia3() -> Iterator[Draft]:
    must = ("ia3.one_plus", "ia3.divided")
    biased = ("layers.0.q_proj", "layers.1.q_proj")
    yield ia3(Draft("ia3.output", "mlp", OTHER, must), QK[1::2])
    yield ia3(Draft("ia3.output_bias", "mlp", BIAS, ("ia3.bias_not_gated", *must)), biased)
    yield ia3(Draft("ia3.input", "mlp", OTHER, must), QK, QK)
    yield ia3(Draft("ia3.both_sides", "mlp", OTHER, must), QK, QK[:1])
    draft = Draft("ia3.input_by_suffix", "mlp", NAMES, must)
    yield ia3(draft, QK, biased, feedforward_modules=["q_proj"], targets=["q_proj", "k_proj"])
    gpt = ("h.0.c_attn", "h.0.c_proj", "h.1.c_fc")
    yield ia3(Draft("ia3.conv1d.output", "gpt", LAYOUT, must), gpt, fan_in_fan_out=True)
    yield ia3(Draft("ia3.conv1d.input", "gpt", LAYOUT, must), gpt, gpt[1:], fan_in_fan_out=True)
    yield ia3(Draft("ia3.conv2d.output", "conv", LAYOUT, must), ["conv", "wide"])
    yield ia3(Draft("ia3.conv2d.input", "conv", LAYOUT, must), ["conv", "wide"], ["conv", "wide"])
    yield ia3(Draft("ia3.fused", "fused", FUSED, must), ["attn.qkv_proj", "mlp.down_proj"], ["mlp.down_proj"])


def _hra() -> Iterator[Draft]:
    must = ("hra.reversed", "hra.gram_schmidt", "hra.not_normalised", "hra.first_only")
    orthonormal = ("hra.not_orthonormal", "hra.not_normalised", "hra.first_only")
    modules = QK[:3]
    yield hra(Draft("hra.even", "mlp", OTHER, must), modules, 4)
    yield hra(Draft("hra.odd", "mlp", OTHER, (*must, "hra.even_only")), modules, 3)
    yield hra(Draft("hra.one", "mlp", OTHER, ("hra.not_normalised",)), modules, 1)
    yield hra(Draft("hra.two", "mlp", OTHER, must), modules, 2)
    yield hra(Draft("hra.gram_schmidt.even", "mlp", OTHER, orthonormal), modules, 4, True)
    yield hra(Draft("hra.gram_schmidt.odd", "mlp", OTHER, (*orthonormal, "hra.even_only")), modules, 3, True)
    yield hra(Draft("hra.conv2d", "conv", LAYOUT, ("hra.reversed",)), ["conv"], 3)
    yield hra(
        Draft("hra.conv2d.gram_schmidt", "conv", LAYOUT, ("hra.not_orthonormal",)), ["conv", "point"], 2, True
    )


def _delora() -> Iterator[Draft]:
    must = ("delora.no_rank", "delora.frobenius", "delora.no_w_norm", "delora.config_lambda")
    yield delora(Draft("delora.rank_three", "mlp", OTHER, must), QK, 3)
    yield delora(Draft("delora.rank_two", "mlp", OTHER, must), QK, 2)
    yield delora(Draft("delora.rank_one", "mlp", OTHER, ("delora.no_norms", "delora.no_w_norm")), QK, 1)
    yield delora(Draft("delora.rank_above_width", "mlp", OTHER, must), QK, 8)
    yield delora(
        Draft("delora.rank_pattern", "mlp", PATTERN, ("delora.no_rank",)), QK, 3, ranks={"q_proj": 2}
    )
    yield delora(Draft("delora.fused", "fused", FUSED, must), ["attn.qkv_proj", "mlp.gate_up_proj"], 3)


def _vera() -> Iterator[Draft]:
    must = ("vera.no_b", "vera.no_d", "vera.last_rows")
    yield vera(Draft("vera.shared", "mlp", OTHER, must), QK, 3)
    yield vera(Draft("vera.one_module", "mlp", OTHER, must[:2]), ONE, 2)
    yield vera(Draft("vera.conv1d", "gpt", LAYOUT, must), ["h.0.c_attn", "h.0.c_proj"], 3)
    yield vera(Draft("vera.rank_above_width", "mlp", OTHER, must), QK, 11)


GROUPS: tuple[Callable[[], Iterator[Draft]], ...] = (
    _scale,
    _patterns,
    _biases,
    _layouts,
    _tied,
    _saved,
    _layers,
    _targets,
    _prefixes,
    _fused,
    _experts,
    _dtypes,
    _dora,
    _pissa,
    _ia3,
    _hra,
    _delora,
    _vera,
    refused,
)

"""Which layers are adapted."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import lora_lite
from lora_lite import AdapterConfig, LoRAConfig, target

from .conftest import CONFIGS, Block, perturb

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, GROUPED),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, GROUPED),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config, {**GROUPED, "head_dim": 8}),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig, GROUPED),
    "gemma": (tf.GemmaForCausalLM, tf.GemmaConfig, {**GROUPED, "head_dim": 8}),
    "phi": (tf.PhiForCausalLM, tf.PhiConfig, GROUPED),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, GPT2),
    "gpt_neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, SMALL),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config, T5),
    "bert": (tf.BertModel, tf.BertConfig, SMALL),
}
PEFT: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=2),
    "ia3": peft.IA3Config,
    "hra": lambda: peft.HRAConfig(r=2),
    "delora": lambda: peft.DeloraConfig(r=2),
}
CONV1D = {("gpt2", "hra"), ("gpt2", "delora")}  # PEFT raises TypeError for these; lora_lite supports them


def build(name: str) -> nn.Module:
    model, config, values = MODELS[name]
    return model(config(**values)).eval()


@pytest.mark.parametrize("variant", list(PEFT))
@pytest.mark.parametrize("name", list(MODELS))
def test_defaults_are_those_that_peft_applies(name: str, variant: str) -> None:
    if (name, variant) in CONV1D:
        pytest.skip("PEFT's HRA and DeLoRA do not take a Conv1D")
    model = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), PEFT[variant]())
    want = {
        key.removeprefix("base_model.model."): getattr(module, "is_feedforward", False)
        for key, module in theirs.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    rank = {} if variant == "ia3" else {"rank": 2}
    ours = lora_lite.attach(model, lora_lite.config_from_dict({"variant": variant, **rank}))
    assert {key: getattr(adapter, "feedforward", False) for key, adapter in ours.items()} == want


@pytest.mark.parametrize("variant", sorted(lora_lite.VARIANTS))
def test_gpt2_has_its_weights_the_other_way_round(variant: str) -> None:
    model, ids = build("gpt2"), torch.arange(5)[None]
    base, W = model(ids).logits, model.transformer.h[0].attn.c_attn.weight.detach().clone()
    lora_lite.attach(
        model,
        lora_lite.config_from_dict(
            {**CONFIGS[variant].to_dict(), "feedforward": None}
            if variant == "ia3"
            else CONFIGS[variant].to_dict()
        ),
    )
    torch.testing.assert_close(model(ids).logits, base, rtol=1e-4, atol=1e-5)
    perturb(model)
    y = model(ids).logits
    torch.testing.assert_close(lora_lite.merge(copy.deepcopy(model))(ids).logits, y, rtol=1e-3, atol=1e-4)
    assert torch.equal(lora_lite.detach(model).transformer.h[0].attn.c_attn.weight, W)
    assert torch.equal(model(ids).logits, base)


def names(**fields: Any) -> list[str]:
    return list(lora_lite.attach(Block(), LoRAConfig(rank=2, **fields)))


def test_names_match_whole_endings() -> None:
    assert names(targets=["0.q_proj"]) == ["layers.0.q_proj"]
    assert names(targets=["layers.1.down_proj"]) == ["layers.1.down_proj"]
    with pytest.raises(ValueError, match="no linear layer matches"):
        names(targets=["proj"])


def test_a_string_is_a_regular_expression_for_the_full_name() -> None:
    assert names(targets=r".*\.[12]\.q_proj") == ["layers.1.q_proj", "layers.2.q_proj"]
    with pytest.raises(ValueError, match="no linear layer"):
        names(targets="q_proj")


def test_layers_and_exclude_narrow_the_choice() -> None:
    assert names(targets=["q_proj"], layers=[0, 2]) == ["layers.0.q_proj", "layers.2.q_proj"]
    assert names(targets=["q_proj"], layers=1) == ["layers.1.q_proj"]
    assert names(targets=["q_proj"], exclude=["1.q_proj"]) == ["layers.0.q_proj", "layers.2.q_proj"]
    assert names(targets=["q_proj"], exclude=r".*[01]\.q_proj") == ["layers.2.q_proj"]


def test_all_linear_leaves_the_head_alone() -> None:
    assert names(targets="all-linear") == [
        f"layers.{i}.{n}" for i in range(3) for n in ("q_proj", "down_proj")
    ]


def test_the_block_is_counted_not_the_expert() -> None:
    assert lora_lite.target.block_index("model.layers.3.mlp.experts.0.w2") == 3


@pytest.mark.parametrize(
    ("feedforward", "gated"),
    [
        (True, {"q_proj", "down_proj"}),
        (False, set()),
        (["down_proj"], {"down_proj"}),
        (".*q_proj", {"q_proj"}),
        (None, set()),
    ],
)
def test_ia3_gates_the_input_where_told(feedforward: Any, gated: set[str]) -> None:
    config: AdapterConfig = lora_lite.IA3Config(targets=["q_proj", "down_proj"], feedforward=feedforward)
    adapters = lora_lite.attach(Block(), config)
    assert {name.rpartition(".")[2] for name, a in adapters.items() if a.feedforward} == gated


def test_the_tables_are_pefts() -> None:
    """Every row, those of architectures too that no test builds."""
    constants = peft.utils.constants
    adapted = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for kind, names in target.TARGETS.items():
        assert set(adapted[kind]) == set(names), kind
    gated = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    inputs = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    for kind, (outer, inner) in target.IA3_TARGETS.items():
        assert set(gated[kind]) == {*outer, *inner}, kind
        assert set(inputs[kind]) == set(inner), kind


def test_a_config_may_be_a_dictionary() -> None:
    model = build("llama")
    model.config = {"model_type": "llama"}  # type: ignore[assignment]
    assert set(lora_lite.attach(model, LoRAConfig(rank=2))) == {
        f"model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj")
    }

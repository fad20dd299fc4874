"""attach, detach, merge: what they change and what they leave."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import lora_lite
from lora_lite import AdapterConfig, DeLoRAConfig, DoRAConfig, HRAConfig, IA3Config, LoRAConfig, PiSSAConfig

from .conftest import CONFIGS, Block, linear, perturb

IDS = torch.arange(6).view(2, 3)


def for_block(config: AdapterConfig) -> AdapterConfig:
    return lora_lite.config_from_dict({**config.to_dict(), "targets": ["q_proj", "down_proj"]})


def test_detach_restores_bit_for_bit(config: AdapterConfig) -> None:
    model = Block()
    model.layers[1]["q_proj"].bias.requires_grad_(False)
    before = {n: (p.detach().clone(), p.requires_grad, id(p)) for n, p in model.named_parameters()}
    y = model(IDS)
    lora_lite.attach(model, for_block(config))
    perturb(model)
    assert not torch.equal(model(IDS), y)
    assert lora_lite.detach(model) is model
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (value, trainable, identity) in before.items():
        assert torch.equal(after[name], value), name
        assert (after[name].requires_grad, id(after[name])) == (trainable, identity), name
    assert torch.equal(model(IDS), y)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_adapters_train(config: AdapterConfig) -> None:
    model = Block()
    lora_lite.attach(model, for_block(config))
    model(IDS).sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if ".lora_lite." in n}
    assert {n for n, p in model.named_parameters() if p.grad is not None} <= trained


def test_layers_stay_what_they_were(config: AdapterConfig) -> None:
    model = Block()
    types = {name: type(module) for name, module in model.named_modules()}
    lora_lite.attach(model, for_block(config))
    assert {n: type(m) for n, m in model.named_modules() if ".lora_lite" not in n} == types


def test_a_copy_has_its_own_adapter(config: AdapterConfig) -> None:
    layer, x = linear(), torch.randn(3, 12)
    base = layer(x)
    lora_lite.attach(layer, config)
    perturb(layer)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
        perturb(twin)
        assert torch.equal(layer(x), y)
        assert torch.equal(lora_lite.detach(twin)(x), base)


def test_merge_computes_the_same(config: AdapterConfig) -> None:
    for bias in (True, False):
        layer, x = linear(bias=bias), torch.randn(3, 12)
        lora_lite.attach(layer, config)
        perturb(layer)
        y = layer(x)
        merged = lora_lite.merge(layer)
        assert merged is layer
        assert list(layer.state_dict()) == ["weight"] + ["bias"] * bias
        assert all(p.requires_grad for p in layer.parameters())
        torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-4)


def test_merging_into_a_frozen_layer_leaves_it_frozen() -> None:
    layer = linear().requires_grad_(False)
    lora_lite.attach(layer, LoRAConfig(rank=2))
    assert not any(p.requires_grad for p in lora_lite.merge(layer).parameters())


@pytest.mark.parametrize(("in_features", "out_features"), [(3, 8), (8, 3)])
def test_pissas_rank_is_bounded_by_the_smaller_side(in_features: int, out_features: int) -> None:
    layer = nn.Linear(in_features, out_features)
    with pytest.raises(ValueError, match="at most 3, got 4"):
        lora_lite.attach(layer, lora_lite.PiSSAConfig(rank=4))
    lora_lite.attach(layer, lora_lite.PiSSAConfig(rank=3))


def test_a_frozen_pissa_layer_that_was_cast_comes_back_frozen() -> None:
    layer = linear().requires_grad_(False)
    lora_lite.attach(layer, lora_lite.PiSSAConfig(rank=2))
    assert not lora_lite.detach(layer.bfloat16()).weight.requires_grad


def test_merge_leaves_a_tied_weight_alone() -> None:
    model = Block()
    embedding = model.embed.weight.detach().clone()
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["lm_head"]))
    perturb(model)
    y = model(IDS)
    lora_lite.merge(model)
    assert torch.equal(model.embed.weight, embedding)
    torch.testing.assert_close(model(IDS), y, rtol=1e-4, atol=1e-4)


def test_pissa_leaves_a_tied_weight_alone() -> None:
    model = Block()
    y = model(IDS)
    lora_lite.attach(model, PiSSAConfig(rank=2, targets=["lm_head"]))
    torch.testing.assert_close(model(IDS), y, rtol=1e-4, atol=1e-4)
    lora_lite.detach(model)
    assert model.lm_head.weight is model.embed.weight


def test_a_shared_layer_is_adapted_once() -> None:
    adapters = lora_lite.attach(Block(), LoRAConfig(rank=2, targets=["q_proj", "down_proj"]))
    assert list(adapters) == [f"layers.{i}.{name}" for i in range(3) for name in ("q_proj", "down_proj")]


def test_two_adapters_side_by_side() -> None:
    model = Block()
    y = model(IDS)
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["q_proj"]))
    lora_lite.attach(model, IA3Config(targets=["down_proj"]))
    assert len(lora_lite.adapters(model)) == 6
    assert all(p.requires_grad for p in lora_lite.parameters(model))
    lora_lite.detach(model)
    assert torch.equal(model(IDS), y)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoRAConfig(targets=["q_proj", "down_prj"]), "down_prj"),
        (LoRAConfig(targets="nothing.*"), "no linear layer matches .*nothing.*layers.0.q_proj"),
        (LoRAConfig(), "no default targets for a Block"),
        (PiSSAConfig(rank=13, targets=["q_proj"]), "'layers.0.q_proj'.*at most 12, got 13"),
        (HRAConfig(rank=3, targets=["q_proj"]), "even rank, got 3"),
        (HRAConfig(rank=13, gram_schmidt=True, targets=["q_proj"]), "at most in_features=12, got 13"),
        (LoRAConfig(targets=["q_proj"], layers=[7]), r"layers=\[7\]"),
        (LoRAConfig(targets=["q_proj"], layers=[0, 7]), "no layer is matched in block 7"),
        (IA3Config(targets=["q_proj", "embed"]), "embed"),
    ],
)
def test_a_refused_attach_changes_nothing(config: AdapterConfig, message: str) -> None:
    model = Block()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        lora_lite.attach(model, config)
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_double_attach_is_refused() -> None:
    layer = linear()
    lora_lite.attach(layer, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="already has a LoRA adapter"):
        lora_lite.attach(layer, IA3Config())


def test_a_layer_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="lazy and has no shape yet"):
        lora_lite.attach(nn.LazyLinear(4), LoRAConfig(rank=2))


@pytest.mark.parametrize("call", [lora_lite.detach, lora_lite.merge])
def test_nothing_to_take_off_is_an_error(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no lora_lite adapter"):
        call(linear())


def quantised() -> nn.Linear:
    layer = linear()
    layer.weight = nn.Parameter(torch.zeros(9, 12, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize("config", [PiSSAConfig(rank=2), DoRAConfig(rank=2), DeLoRAConfig(rank=2)], ids=repr)
@pytest.mark.parametrize(
    ("layer", "word"), [(quantised(), "quantised"), (nn.Linear(3, 4, device="meta"), "meta")]
)
def test_variants_that_read_the_weight_refuse_what_is_not_one(
    config: AdapterConfig, layer: nn.Linear, word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        lora_lite.attach(layer, config)
    assert not layer._forward_hooks


def test_the_others_accept_a_quantised_layer_but_not_merging() -> None:
    for name in ("lora", "ia3", "hra"):
        layer = quantised()
        lora_lite.attach(layer, CONFIGS[name])
        with pytest.raises(ValueError, match="quantised"):
            lora_lite.merge(layer)
        assert lora_lite.adapters(layer)


def test_the_out_proj_of_multihead_attention_is_refused() -> None:
    model = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match="MultiheadAttention"):
        lora_lite.attach(model, LoRAConfig(targets=["out_proj"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRAConfig(rnak=4), "has no field rnak; it has .*rank"),
        (lambda: LoRAConfig(rank=0), "rank must be an integer of at least 1, got 0"),
        (lambda: LoRAConfig(rank=2.0), "rank must be an integer"),
        (lambda: LoRAConfig(rank=True), "rank must be an integer"),
        (lambda: LoRAConfig(alpha=float("nan")), "alpha"),
        (lambda: LoRAConfig(alpha=0), "alpha must be a number above 0"),
        (lambda: LoRAConfig(dropout=1.0), "dropout must be a number at least 0 and below 1"),
        (lambda: LoRAConfig(targets=[]), "targets"),
        (lambda: LoRAConfig(targets=[3]), "targets"),
        (lambda: LoRAConfig(layers=1.5), "layers"),
        (lambda: HRAConfig(gram_schmidt=1), "gram_schmidt must be True or False, got 1"),
        (lambda: LoRAConfig(rslora="yes"), "rslora must be True or False"),
        (
            lambda: LoRAConfig(rank_pattern={"q": 0}),
            r"rank_pattern\['q'\] must be an integer of at least 1, got 0",
        ),
        (lambda: LoRAConfig(alpha_pattern={"(": 2}), "alpha_pattern must map layer names to values"),
        (lambda: DeLoRAConfig(lambda0_pattern=[1]), "lambda0_pattern must map layer names to values"),
        (lambda: DeLoRAConfig(lambda0="x"), "lambda0"),
        (lambda: lora_lite.config_from_dict({"variant": "lokr"}), "unknown variant 'lokr'; known are delora"),
        (lambda: lora_lite.config_from_dict({"variant": "ia3", "rank": 2}), "IA3Config has no field rank"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_configs_survive_plain_data(config: AdapterConfig) -> None:
    assert lora_lite.config_from_dict(config.to_dict()) == config


def test_model_can_change_dtype_and_back_off() -> None:
    layer = linear()
    W = layer.weight.detach().clone()
    lora_lite.attach(layer, PiSSAConfig(rank=2))
    layer.to(torch.bfloat16)
    layer(torch.randn(2, 12, dtype=torch.bfloat16))
    assert torch.equal(lora_lite.detach(layer).weight, W.to(torch.bfloat16))


def test_model_can_be_halved_after_attach(config: AdapterConfig) -> None:
    layer, x = linear(), torch.randn(3, 12)
    lora_lite.attach(layer, config)
    perturb(layer, 0.1)
    y = layer(x)
    layer.to(torch.bfloat16)
    for grad in (False, True):
        half = layer(x.to(torch.bfloat16).requires_grad_(grad))
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), y, rtol=0.1, atol=0.1)
    lora_lite.merge(layer)
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.to(torch.bfloat16)).float(), y, rtol=0.1, atol=0.1)

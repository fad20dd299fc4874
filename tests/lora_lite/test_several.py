"""Several adapters on one layer: how they act together, switched, deleted, merged in place and taken out again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lora_lite
from lora_lite import AdapterConfig, DeLoRAConfig, DoRAConfig, HRAConfig, IA3Config, LoRAConfig, PiSSAConfig

from .conftest import CONFIGS, Block, linear, perturb
from .test_adapter import IDS, for_block

X = torch.linspace(-1, 1, 36, dtype=torch.float64).view(3, 12)


def effective(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the affine function that the layer computes, read off its outputs."""
    with torch.no_grad():
        b = layer(torch.zeros(12, dtype=torch.float64))
        return (layer(torch.eye(12, dtype=torch.float64)) - b).T, b


def pair(config: AdapterConfig, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor]:
    """A layer with adapters "default" and "b" off their start, its W and b."""
    layer = linear(dtype=dtype)
    W, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    lora_lite.attach(layer, config)
    lora_lite.attach(layer, config, name="b")
    perturb(layer)
    return layer, W, b


def alone(layer: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    lora_lite.set_adapters(layer, [name])
    return effective(layer)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_first_is_active_and_a_second_is_not(config: AdapterConfig) -> None:
    layer = linear(dtype=torch.float64)
    lora_lite.attach(layer, config)
    perturb(layer)
    y = layer(X)
    lora_lite.attach(layer, config, name="b")
    assert lora_lite.names(layer) == ("default", "b")
    assert lora_lite.active(layer) == ("default",)
    assert torch.equal(layer(X), y)
    assert not any(p.requires_grad for p in lora_lite.parameters(layer, "b"))


def test_each_acts_alone_as_if_it_were_the_only_one(config: AdapterConfig) -> None:
    layer, W, b = pair(config)
    for name in ("default", "b"):
        single = nn.Linear(12, 9, dtype=torch.float64)
        single.load_state_dict({"weight": W, "bias": b})
        (adapter,) = lora_lite.attach(single, config).values()
        adapter.restore(single, lora_lite.adapters(layer, name)[""].state(layer))
        if isinstance(config, PiSSAConfig):
            lora_lite.set_adapters(single, [])  # the residual of the tensors that were restored
            lora_lite.set_adapters(single, "default")
        lora_lite.set_adapters(layer, name)
        assert torch.equal(layer(X), single(X))


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", "delora"])
def test_what_each_changes_of_the_base_adds(name: str) -> None:
    layer, W, b = pair(CONFIGS[name])
    changes = [alone(layer, adapter)[0] - W for adapter in ("default", "b")]
    lora_lite.set_adapters(layer, ["default", "b"])
    together, bias = effective(layer)
    close(together, W + changes[0] + changes[1])
    close(bias, b)


def test_adapters_of_two_methods_add_too() -> None:
    layer = linear(dtype=torch.float64)
    W = layer.weight.detach().clone()
    lora_lite.attach(layer, LoRAConfig(rank=2))
    lora_lite.attach(layer, DoRAConfig(rank=3), name="b")
    lora_lite.attach(layer, DeLoRAConfig(rank=2), name="c")
    perturb(layer)
    changes = [alone(layer, adapter)[0] - W for adapter in ("default", "b", "c")]
    lora_lite.set_adapters(layer, ["c", "default", "b"])
    close(effective(layer)[0], W + changes[0] + changes[1] + changes[2])


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_multiplies(feedforward: bool) -> None:
    layer, W, b = pair(IA3Config(feedforward=feedforward))
    first, second = (lora_lite.adapters(layer, n)[""].l.detach() for n in ("default", "b"))
    lora_lite.set_adapters(layer, ["default", "b"])
    got, bias = effective(layer)
    gate = first * second
    close(got, W * gate if feedforward else W * gate[:, None])
    close(bias, b if feedforward else b * gate)


@pytest.mark.parametrize("name", ["hra", "hra-gs"])
@pytest.mark.parametrize("input_grad", [False, True])
def test_hra_chains_in_the_order_given(name: str, input_grad: bool) -> None:
    layer, W, _ = pair(CONFIGS[name])
    H = {n: torch.eye(12, dtype=torch.float64) - factored(layer, n) for n in ("default", "b")}
    x = X.clone().requires_grad_(input_grad)
    for order in (["default", "b"], ["b", "default"]):
        lora_lite.set_adapters(layer, order)
        close(layer(x), x @ (W @ H[order[0]] @ H[order[1]]).T + layer.bias)
    assert not torch.allclose(H["default"] @ H["b"], H["b"] @ H["default"])


def factored(layer: nn.Module, name: str) -> Tensor:
    """I - H."""
    unit, M = lora_lite.adapters(layer, name)[""].factors()
    return unit @ torch.linalg.inv(M) @ unit.T


@pytest.mark.parametrize("name", list(CONFIGS))
def test_peft_composes_the_same(name: str, tmp_path: Path) -> None:
    """The same two adapters in PEFT, both active, in evaluation mode."""
    import peft

    config = {**CONFIGS[name].to_dict(), "targets": ["layer"]}
    if name == "ia3-ff":
        config["feedforward"] = ["layer"]
    model = nn.ModuleDict({"layer": linear(dtype=torch.float32)})
    base = copy.deepcopy(model)
    for adapter in ("default", "b"):
        lora_lite.attach(model, lora_lite.config_from_dict(config), adapter)
    perturb(model)
    for adapter in ("default", "b"):
        lora_lite.save_peft(model, tmp_path / adapter, adapter)
    lora_lite.set_adapters(model, ["default", "b"])
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "default")
    theirs.load_adapter(tmp_path / "b", "b")
    theirs.base_model.set_adapter(["default", "b"])
    ours, x = model["layer"].eval(), X.float()
    want = theirs.eval().base_model.model["layer"](x)
    if name == "dora":  # PEFT's second one changes what the first one made; lora_lite's both change the base
        assert not torch.allclose(ours(x), want, rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(ours(x), want, rtol=1e-4, atol=1e-4)


def test_none_active_is_the_base_without_a_hook(config: AdapterConfig) -> None:
    layer, W, b = pair(config)
    lora_lite.set_adapters(layer, [])
    assert torch.equal(layer(X), nn.functional.linear(X, W, b))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    assert torch.equal(layer.weight, W)


def test_inactive_ones_get_no_gradient(config: AdapterConfig) -> None:
    layer, _, _ = pair(config)
    lora_lite.set_adapters(layer, "b")
    layer(X).square().sum().backward()
    assert all(p.grad is None for p in lora_lite.parameters(layer, "default"))
    assert all(p.grad is not None for p in lora_lite.parameters(layer, "b"))
    lora_lite.set_adapters(layer, ["b", "default"])
    assert all(p.requires_grad for p in lora_lite.parameters(layer))


def test_disabled_is_the_base_for_a_while(config: AdapterConfig) -> None:
    layer, W, b = pair(config)
    lora_lite.set_adapters(layer, ["default", "b"])
    y, base = layer(X), nn.functional.linear(X, W, b)
    for merged in (False, True):
        if merged:
            lora_lite.merge_in_place(layer)
            y = layer(X)
        with lora_lite.disabled(layer) as inside:
            assert inside is layer
            assert torch.equal(layer(X), base)
        assert torch.equal(layer(X), y)
        with pytest.raises(RuntimeError, match="stop"), lora_lite.disabled(layer):
            raise RuntimeError("stop")
        assert torch.equal(layer(X), y)
    lora_lite.unmerge(layer)
    assert lora_lite.active(layer) == ("default", "b")


def test_delete_leaves_the_others(config: AdapterConfig) -> None:
    layer, W, b = pair(config)
    single = [alone(layer, n) for n in ("default", "b")]
    lora_lite.set_adapters(layer, ["default", "b"])
    lora_lite.delete(layer, "default")
    assert lora_lite.names(layer) == lora_lite.active(layer) == ("b",)
    close(effective(layer)[0], single[1][0])
    assert not any("lora_lite." in key for key in layer.state_dict())
    lora_lite.delete(layer, "b")
    assert torch.equal(layer(X), nn.functional.linear(X, W, b))
    assert all(p.requires_grad for p in layer.parameters())
    with pytest.raises(ValueError, match="no lora_lite adapter"):
        lora_lite.delete(layer, "b")


NAMES: list[Sequence[str]] = [["default"], ["b"], ["default", "b"], []]


@pytest.mark.parametrize("active", NAMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_merged_in_place_and_back(config: AdapterConfig, active: Sequence[str], dtype: torch.dtype) -> None:
    layer, W, b = pair(config, dtype)
    lora_lite.set_adapters(layer, active)
    x = X.to(dtype)
    y, own = layer(x), dict(layer.named_parameters())
    lora_lite.merge_in_place(layer)
    assert not layer._forward_hooks
    tolerance = 1e-9 if dtype == torch.float64 else 0.15
    torch.testing.assert_close(layer(x), y, rtol=tolerance, atol=tolerance)
    assert lora_lite.active(layer) == tuple(active)
    with pytest.raises(ValueError, match="is merged already; unmerge it first"):
        lora_lite.merge_in_place(layer)
    lora_lite.unmerge(layer)
    assert torch.equal(layer(x), y)
    if not isinstance(config, PiSSAConfig):
        assert all(own[name] is p for name, p in layer.named_parameters())
    with pytest.raises(ValueError, match="nothing to unmerge"):
        lora_lite.unmerge(layer)
    lora_lite.merge_in_place(layer)
    lora_lite.detach(layer)
    assert torch.equal(layer.weight, W)
    assert torch.equal(layer.bias, b)
    assert all(p.requires_grad for p in layer.parameters())


def test_merge_takes_the_active_ones(config: AdapterConfig) -> None:
    for merged_before in (False, True):
        layer, _, _ = pair(config)
        lora_lite.set_adapters(layer, ["b"])
        y = layer(X)
        if merged_before:
            lora_lite.merge_in_place(layer)
        assert list(lora_lite.merge(layer).state_dict()) == ["weight", "bias"]
        close(layer(X), y)
        assert all(p.requires_grad for p in layer.parameters())


def test_a_merged_model_is_unmerged_before_others_act(config: AdapterConfig) -> None:
    layer, _, _ = pair(config)
    wanted = alone(layer, "b")
    lora_lite.set_adapters(layer, ["default"])
    lora_lite.merge_in_place(layer)
    lora_lite.set_adapters(layer, ["b"])
    got = effective(layer)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    lora_lite.merge_in_place(layer)
    lora_lite.delete(layer, "default")  # an inactive one: the merged weight stays
    assert not layer._forward_hooks
    lora_lite.delete(layer, "b")
    assert lora_lite.names(layer) == ()


def test_what_is_saved_is_the_adapter_whatever_the_state(config: AdapterConfig, tmp_path: Path) -> None:
    layer, W, b = pair(config)
    fresh = nn.Linear(12, 9, dtype=torch.float64)
    fresh.load_state_dict({"weight": W, "bias": b})
    lora_lite.set_adapters(layer, "b")
    y = layer(X)
    states = {
        "active": lambda: None,
        "merged": lambda: lora_lite.merge_in_place(layer),
        "inactive": lambda: lora_lite.set_adapters(layer, "default"),
        "beside a merged one": lambda: lora_lite.merge_in_place(layer),
        "off": lambda: lora_lite.set_adapters(layer, []),
    }
    for number, change in enumerate(states.values()):
        change()
        lora_lite.save(layer, tmp_path / f"{number}", "b")
        twin = copy.deepcopy(fresh)
        lora_lite.load(twin, tmp_path / f"{number}", "b")
        assert torch.equal(twin(X), y)


def test_loading_a_second_leaves_the_first_alone(config: AdapterConfig, tmp_path: Path) -> None:
    layer, _, _ = pair(config)
    lora_lite.save(layer, tmp_path / "a", "b")
    lora_lite.delete(layer, "b")
    lora_lite.set_adapters(layer, "default")
    y = layer(X)
    lora_lite.load(layer, tmp_path / "a", name="b")
    assert torch.equal(layer(X), y)
    lora_lite.set_adapters(layer, "b")
    assert all(p.requires_grad for p in lora_lite.parameters(layer, "b"))


@pytest.mark.parametrize("merged", [False, True])
def test_a_copy_has_all_of_them(config: AdapterConfig, merged: bool) -> None:
    layer, W, _ = pair(config)
    lora_lite.set_adapters(layer, ["default", "b"])
    if merged:
        lora_lite.merge_in_place(layer)
    y = layer(X)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(X), y)
        lora_lite.set_adapters(twin, "b")
        perturb(twin)
        assert torch.equal(layer(X), y)
        assert torch.equal(lora_lite.detach(twin).weight, W)
    assert lora_lite.active(layer) == ("default", "b")


def test_cast_while_merged_and_while_inactive() -> None:
    layer, W, _ = pair(PiSSAConfig(rank=2), torch.float32)
    lora_lite.merge_in_place(layer)
    layer.to(torch.bfloat16)
    lora_lite.unmerge(layer)
    assert layer(X.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(lora_lite.detach(layer).weight, W.bfloat16())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: lora_lite.set_adapters(m, ["default", "c"]),
            "no adapter 'c'; the model has 'default', 'b'",
        ),
        (lambda m: lora_lite.set_adapters(m, ["b", "b"]), "named once"),
        (lambda m: lora_lite.set_adapters(m, ["default", "gate"]), "cannot be active together"),
        (lambda m: lora_lite.delete(m, "c"), "no adapter 'c'"),
        (lambda m: lora_lite.attach(m, LoRAConfig(rank=2), "b"), "already has a LoRA adapter called 'b'"),
        (lambda m: lora_lite.attach(m, LoRAConfig(rank=2), "x.y"), "a text without a dot, got 'x.y'"),
        (lambda m: lora_lite.attach(m, LoRAConfig(rank=2), ""), "a text without a dot"),
        (lambda m: lora_lite.save(m, "nowhere", "c"), "no adapter 'c'"),
        (lambda m: lora_lite.unmerge(m), "nothing to unmerge"),
    ],
)
def test_a_call_that_fails_changes_nothing(call, message: str) -> None:  # type: ignore[no-untyped-def]
    layer, _, _ = pair(LoRAConfig(rank=2))
    lora_lite.attach(layer, IA3Config(), name="gate")
    y, state = layer(X), layer.state_dict()
    with pytest.raises(ValueError, match=message):
        call(layer)
    assert torch.equal(layer(X), y)
    assert list(layer.state_dict()) == list(state)
    assert lora_lite.names(layer) == ("default", "b", "gate")
    assert lora_lite.active(layer) == ("default",)


def test_dora_and_pissa_do_not_act_together() -> None:
    for order in ([DoRAConfig(rank=2), PiSSAConfig(rank=2)], [PiSSAConfig(rank=2), DoRAConfig(rank=2)]):
        layer = linear()
        m = layer.weight.norm(dim=1)
        lora_lite.attach(layer, order[0])
        lora_lite.attach(layer, order[1], name="b")
        with pytest.raises(ValueError, match="of which PiSSA leaves a residual"):
            lora_lite.set_adapters(layer, ["default", "b"])
        dora = next(
            a for n in ("default", "b") for a in lora_lite.adapters(layer, n).values() if hasattr(a, "m")
        )
        torch.testing.assert_close(dora.m.detach(), m)


def test_a_model_with_one_adapter_in_some_layers(config: AdapterConfig) -> None:
    model = Block().double()
    y = model(IDS)
    lora_lite.attach(model, for_block(config))
    fewer = {**config.to_dict(), "targets": ["q_proj"], "layers": [1]}
    lora_lite.attach(model, lora_lite.config_from_dict(fewer), "b")
    perturb(model)
    lora_lite.set_adapters(model, "b")
    changed = model(IDS)
    assert lora_lite.active(model) == ("b",)
    lora_lite.merge_in_place(model)
    close(model(IDS), changed)
    lora_lite.unmerge(model)
    lora_lite.set_adapters(model, ["default", "b"])
    assert lora_lite.active(model) == ("default", "b")
    lora_lite.delete(model, "default")
    assert torch.equal(model(IDS), changed)
    lora_lite.detach(model)
    assert torch.equal(model(IDS), y)


def test_more_layers_of_an_active_adapter_act_at_once() -> None:
    model = Block()
    lora_lite.attach(model, LoRAConfig(rank=2, targets=["q_proj"]))
    lora_lite.attach(model, IA3Config(targets=["down_proj"]))
    lora_lite.attach(model, HRAConfig(rank=2, targets=["down_proj"]), "b")
    assert lora_lite.active(model) == ("default",)
    assert sum(bool(m._forward_hooks or m._forward_pre_hooks) for m in model.modules()) == 6


def test_an_adapter_follows_the_mode_of_its_layer(config: AdapterConfig, tmp_path: Path) -> None:
    layer = linear().eval()
    (adapter,) = lora_lite.attach(layer, config).values()
    assert not adapter.training
    lora_lite.save(layer, tmp_path / "a")
    (loaded,) = lora_lite.load(
        linear().eval() if config.variant != "pissa" else lora_lite.detach(layer), tmp_path / "a"
    ).values()
    assert not loaded.training

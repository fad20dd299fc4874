"""Adapters over quantised weights, bitsandbytes' and torchao's, on the CPU. Skipped where these are not installed."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lora_lite
from lora_lite import AdapterConfig, DoRAConfig, LoRAConfig, PiSSAConfig

from .conftest import CONFIGS, perturb


def bits4(layer: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    made = bnb.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")


def bits8(layer: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    made = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")


def int8(layer: nn.Linear) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    made = copy.deepcopy(layer)
    quantization.quantize_(made, quantization.Int8WeightOnlyConfig())
    return made


QUANTISE: dict[str, Callable[[nn.Linear], nn.Module]] = {"bits4": bits4, "bits8": bits8, "int8": int8}
OFFERED = ["lora", "ia3", "ia3-ff", "hra", "hra-gs", "delora"]


@pytest.fixture(params=list(QUANTISE))
def quantised(request: pytest.FixtureRequest) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return QUANTISE[request.param](nn.Linear(64, 32))


def dense_twin(layer: nn.Module) -> nn.Linear:
    """A plain layer with the numbers of the quantised one."""
    twin = nn.Linear(64, 32)
    with torch.no_grad():
        twin.weight.copy_(lora_lite.weight_of(layer))
        twin.bias.copy_(layer.bias)
    return twin


def both(layer: nn.Module, config: AdapterConfig) -> nn.Linear:
    """Adapt the layer, and a plain twin with the same adapter."""
    twin = dense_twin(layer)
    ours, theirs = lora_lite.attach(layer, config)[""], lora_lite.attach(twin, config)[""]
    perturb(layer, 0.1)
    theirs.load_state_dict(ours.state_dict())
    return twin


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def test_weight_of_is_what_the_layer_computes_with(quantised: nn.Module) -> None:
    x = torch.randn(5, 64)
    assert apart(quantised(x), dense_twin(quantised)(x)) < 1e-5
    assert apart(quantised(x), dense_twin(quantised)(x)) < 1e-5  # a first call moves bitsandbytes' scales


@pytest.mark.parametrize("name", OFFERED)
@pytest.mark.parametrize("input_grad", [False, True])
def test_forward_and_gradients(quantised: nn.Module, name: str, input_grad: bool) -> None:
    twin = both(quantised, CONFIGS[name])
    found = []
    for layer in (quantised, twin):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).requires_grad_(input_grad)
        y = layer(x)
        y.square().sum().backward()
        gradients = [p.grad for p in lora_lite.parameters(layer)] + ([x.grad] if input_grad else [])
        found.append([y, *gradients])
    for actual, expected in zip(*found, strict=True):
        assert apart(actual, expected) < 1e-4


@pytest.mark.parametrize("name", OFFERED)
def test_merging_errs_by_the_rounding_alone(quantised: nn.Module, name: str) -> None:
    twin = both(quantised, CONFIGS[name])
    weight, x = quantised.weight, torch.randn(5, 64)
    y = quantised(x)
    exact = lora_lite.merge(twin)
    requantised = lora_lite.quantised.requantised(quantised, exact.weight.detach())
    lora_lite.merge_in_place(quantised)
    assert type(quantised.weight) is type(weight)
    assert torch.equal(
        lora_lite.weight_of(merged_view(quantised)), lora_lite.weight_of(again(quantised, requantised))
    )
    assert apart(quantised(x), y) < (0.15 if "4bit" in type(quantised).__name__ else 0.02)
    lora_lite.unmerge(quantised)
    assert quantised.weight is weight
    assert apart(quantised(x), y) < 1e-6
    lora_lite.merge_in_place(quantised)
    lora_lite.detach(quantised)
    assert quantised.weight is weight


def merged_view(layer: nn.Module) -> nn.Module:
    """A plain copy of a layer that is merged in place."""
    return lora_lite.merge(copy.deepcopy(layer))


def again(layer: nn.Module, weight: nn.Parameter) -> nn.Module:
    """The layer with another quantised weight and the bias it has now."""
    twin = lora_lite.detach(copy.deepcopy(layer))
    twin.weight = weight
    return twin


@pytest.mark.parametrize("config", [PiSSAConfig(rank=2), DoRAConfig(rank=2)], ids=["pissa", "dora"])
def test_those_that_change_the_weight_refuse(quantised: nn.Module, config: AdapterConfig) -> None:
    with pytest.raises(ValueError, match="needs a dense floating-point weight, but its weight is quantised"):
        lora_lite.attach(quantised, config)


@pytest.mark.parametrize("name", OFFERED)
def test_files_and_copies(quantised: nn.Module, name: str, tmp_path: Path) -> None:
    fresh = copy.deepcopy(quantised)
    lora_lite.attach(quantised, CONFIGS[name])
    perturb(quantised, 0.1)
    lora_lite.save(quantised, tmp_path / "a")
    lora_lite.load(fresh, tmp_path / "a")
    x = torch.randn(5, 64)
    assert apart(fresh(x), quantised(x)) < 1e-6
    assert apart(copy.deepcopy(quantised)(x), quantised(x)) < 1e-6


def test_a_second_adapter(quantised: nn.Module) -> None:
    x = torch.randn(5, 64)
    base = quantised(x)
    lora_lite.attach(quantised, LoRAConfig(rank=2))
    lora_lite.attach(quantised, LoRAConfig(rank=3), "b")
    perturb(quantised)
    lora_lite.set_adapters(quantised, [])
    assert torch.equal(quantised(x), base)
    lora_lite.set_adapters(quantised, ["default", "b"])
    y = quantised(x)
    lora_lite.merge_in_place(quantised)
    lora_lite.set_adapters(quantised, "b")
    assert not torch.equal(quantised(x), y)


def test_no_library_is_imported_for_a_plain_layer() -> None:
    source = importlib.import_module("lora_lite.quantised").__file__ or ""
    assert "import bitsandbytes" not in Path(source).read_text()
    assert "import torchao" not in Path(source).read_text()

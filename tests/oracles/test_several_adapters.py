"""Several active adapters on one layer compute what the record says: PEFT's rule, asked of PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from oracles.peft import BINDINGS, OneLayer
from oracles.peft_lifecycle import spec_in
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS
from oracles.variants.record import Compose

IN, OUT = 7, 5


def two_adapters(variant: str, dropout: float = 0.0) -> tuple[Any, list[AdapterSpec]]:
    """PEFT's layer with adapters "default" and "other" of different ranks and scales, both active."""
    specs = [
        AdapterSpec(variant, rank, alpha, dropout, lambda0=strength)
        for rank, alpha, strength in ((2, 3.0, 3.0), (4, 2.0, 5.0))
    ]
    specs[1] = VARIANTS[variant].beside(*specs)
    model = OneLayer(nn.Linear(IN, OUT))
    configs = [BINDINGS[variant].config(spec, ["layer"]) for spec in specs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned: Any = peft.get_peft_model(model, configs[0])
        tuned.add_adapter("other", configs[1])
        tuned.base_model.set_adapter(["default", "other"])
    return tuned.base_model.model.layer, specs


def moved(node: Tensor) -> Tensor:
    """A parameter, far from its start."""
    with torch.no_grad():
        return node.copy_(torch.randn(node.shape) * 0.5 + 0.7)


def gradient(node: Tensor) -> Tensor:
    """A parameter's gradient."""
    assert node.grad is not None
    return node.grad


def parameters(
    layer: Any, variant: str, adapter: str, spec: AdapterSpec, of: Callable[[Tensor], Tensor] = moved
) -> dict[str, Tensor]:
    """The canonical tensors of one of the adapters, or what is ``of`` its parameters, in float64."""
    binding, found = BINDINGS[variant], {}
    for name, path in binding.paths.items():
        node = layer
        for part in path.replace("default", adapter).split("."):
            node = getattr(node, part) if hasattr(node, part) else node[part]
        record = VARIANTS[variant].tensor(name)
        assert record is not None
        if record.role == "parameter":
            node = of(node)
        view = binding.view(name, spec, layer) if binding.view else (lambda t: t)
        found[name] = view(node).detach().double()
    return found


def composed(variant: str, rule: Compose, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """The output of PEFT's layer, in training mode, and what the rule makes of its adapters' values."""
    seed_torch(0)
    layer, specs = two_adapters(variant, dropout)
    W, b = (t.detach().double() for t in (layer.base_layer.weight, layer.base_layer.bias))
    active = [(parameters(layer, variant, n, s), s) for n, s in zip(("default", "other"), specs, strict=True)]
    x = torch.randn(3, IN)
    with torch.no_grad():
        return layer.train()(x).double(), rule(active, W, b, x.double())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].peft])
def test_several_adapters_compute_what_the_record_says(variant: str) -> None:
    actual, exact = composed(variant, VARIANTS[variant].compose_adapters)
    assert torch.allclose(actual, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].also_composes])
def test_with_dropout_peft_composes_otherwise(variant: str) -> None:
    """At a rate at which nothing is dropped, so that the rule alone can be seen."""
    record = VARIANTS[variant]
    actual, exact = composed(variant, record.also_composes[0], dropout=1e-9)
    assert torch.allclose(actual, exact, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, composed(variant, record.compose_adapters)[1], rtol=1e-2)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].peft])
def test_several_adapters_have_the_gradients_that_the_record_says(variant: str) -> None:
    """What is a constant in the equation is one in the rule: of every parameter of both, PEFT's gradient."""
    seed_torch(0)
    layer, specs = two_adapters(variant)
    W, b = (t.detach().double() for t in (layer.base_layer.weight, layer.base_layer.bias))
    held = [(parameters(layer, variant, n, s), s) for n, s in zip(("default", "other"), specs, strict=True)]
    for values, _ in held:
        for tensor in VARIANTS[variant].tensors:
            if tensor.role == "parameter" and tensor.name in values:
                values[tensor.name].requires_grad_()
    x, G = torch.randn(3, IN), torch.randn(3, OUT)
    layer.train()(x).backward(G)
    VARIANTS[variant].compose_adapters(held, W, b, x.double()).backward(G.double())
    for (values, spec), adapter in zip(held, ("default", "other"), strict=True):
        actual = parameters(layer, variant, adapter, spec, of=gradient)
        for name, value in values.items():
            if value.requires_grad:
                assert torch.allclose(actual[name], value.grad, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_adapter_is_its_equation(variant: str) -> None:
    """And none is the base layer."""
    record, spec = VARIANTS[variant], AdapterSpec(variant, 2, 3.0)
    seed_torch(0)
    base = nn.Linear(IN, OUT, dtype=torch.float64)
    W, b, x = base.weight.detach(), base.bias.detach(), torch.randn(3, IN, dtype=torch.float64)
    p = record.form.initial(W, spec)
    alone = record.compose_adapters([(p, spec)], W, b, x)
    assert torch.allclose(alone, record.form.forward(x, W, b, p, spec, x))
    assert torch.allclose(record.compose_adapters([], W, b, x), base(x).detach())


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].peft])
def test_a_checkpoint_states_its_spec(variant: str, tmp_path: Path) -> None:
    """What PEFT writes into adapter_config.json is read back as the spec it was made from, by this method alone."""
    record = VARIANTS[variant]
    spec = AdapterSpec(variant, 2, 3.0, 0.1, lambda0=3.0)
    for option in record.options:
        spec = option.put(spec, option.values[-1] if option.values else True)
    config = BINDINGS[variant].config(spec, ["layer"])
    config.save_pretrained(str(tmp_path))
    read = spec_in(tmp_path)
    for option in record.options:
        if not option.side:  # a matter of the layer, not of the file
            assert option.of(read) == option.of(spec), option.name
    assert read.variant == variant
    assert not record.has_rank or read.rank == 2
    assert not record.has_dropout or read.dropout == 0.1
